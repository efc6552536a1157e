"""A new owner: the state of the changelog, the intents of the owner before, and what must be done or shown again."""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Iterable, Sequence

import msgspec

from streams.audio import outcomes
from streams.audio import session as sessions
from streams.audio.cuts import cut, put_segment
from streams.audio.deadlines import schedule
from streams.audio.effects import Effect
from streams.audio.ending import assembly, removal
from streams.audio.rows import Rows
from streams.audio.session import Kept, Session, Status
from streams.audio.settling import fail
from streams.audio.state import SESSION_TAG, STATE_KEY, AudioState, ChangelogRecord, SavedState
from topics.rows import VERSION_OFFSET_BITS


def restore(state: AudioState, records: Sequence[ChangelogRecord]) -> None:
    """Apply changelog records in log order."""
    for key, value in records:
        if key == STATE_KEY and value is not None:
            saved = msgspec.msgpack.decode(value, type=SavedState)
            state.epoch, state.position, state.clock_ms = saved.epoch, saved.position, saved.clock_ms
            state.materialised, state.totals = saved.materialised, Counter(saved.totals)
        elif key[:1] == SESSION_TAG:
            session_id = key[1:].decode()
            if value is None:
                state.sessions.pop(session_id, None)
            else:
                state.sessions[session_id] = sessions.load(sessions.decode(value))


def restored(state: AudioState, epoch: int, start: int) -> None:
    """End of a restore; reading goes on at `start`."""
    anew = state.epoch not in (0, epoch)
    state.epoch, state.start = epoch, start
    if anew:
        state.position = 0
    state.offset = max(start, state.position)
    for session in sorted(state.sessions.values(), key=lambda session: session.opened_offset):
        if anew or session.version >> VERSION_OFFSET_BITS != epoch:
            session.applied = 0
        if session.status is Status.OPEN or session.intents:
            session.deferred = not state.shelf.admit(session.id, state.rules.window_memory(session.opened))
        if anew:
            _give_up(state, session)
            state.effects = []  # `undone` tells them
        _await(state, session)
        session.removing = session.recording is not None and _unremoved(state, session)
        schedule(state, session)
    heapq.heapify(state.awaited)


def _await(state: AudioState, session: Session) -> None:
    if session.deferred:
        return
    for first_seq in session.intents:
        segment = session.segments[first_seq]
        if segment.first_offset >= state.start:
            state.awaited.append((segment.last_offset, session.id, first_seq))
            session.awaiting += 1


def _unremoved(state: AudioState, session: Session) -> bool:
    kept = {segment.kept for segment in session.segments.values()}
    return state.rules.remove_segments and Kept.STORED in kept and Kept.FAILED not in kept


def _give_up(state: AudioState, session: Session) -> None:
    """The log was made anew, or cut off: what had not been stored is gone with it."""
    if session.pending:
        cut(state, session, everything=True)
    for first_seq in list(session.intents):
        segment = session.segments[first_seq]
        lost = outcomes.Failed(first_seq, segment.last_seq, segment.attempts, "the log that held it is gone")
        fail(state, session, lost)


def undone(state: AudioState) -> Iterable[Effect]:
    """Effects without an outcome, as the restored state has them; those that wait for bytes to be read again come later."""
    waiting = {(session_id, first_seq) for _, session_id, first_seq in state.awaited}
    for session in state.sessions.values():
        for first_seq in session.intents:
            if (session.id, first_seq) not in waiting:
                yield put_segment(session, session.segments[first_seq])
        if session.status is Status.CLOSING and not session.intents:
            yield assembly(session)
        if session.removing:
            yield removal(session)


def unmaterialised(state: AudioState) -> Rows:
    """What ClickHouse may lack after a restore: sessions newer than it is known to hold, with all their segments."""
    rows = Rows()
    for session in state.sessions.values():
        if session.version > state.materialised:
            rows.add(session, session.segments.values(), state.rules.partition)
    return rows


def ask_for_awaited(state: AudioState, end: int) -> None:
    """Ask for the segments of an earlier owner's intents whose bytes have been read again by now."""
    while state.awaited and state.awaited[0][0] < end:
        _, session_id, first_seq = heapq.heappop(state.awaited)
        session = state.sessions.get(session_id)
        if session is None:
            continue
        session.awaiting -= 1
        segment = session.segments[first_seq]
        if segment.kept is not Kept.INTENDED:
            # Its outcome was in the log already.
            continue
        state.shelf.intend(session_id, first_seq, segment.last_seq, state.clock_ms)
        state.effects.append(put_segment(session, segment))
