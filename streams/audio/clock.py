"""The partition's clock: what is due is done before the record that moves the clock past it."""

from __future__ import annotations

import heapq

from streams.audio.cuts import cut
from streams.audio.deadlines import next_due_ms, schedule, upload_after_ms
from streams.audio.ending import end_session, forget, start_removal
from streams.audio.session import Kept, Session, Status
from streams.audio.state import AudioState, mark
from topics.audio_events import ClosedBy


def pass_time(state: AudioState, append_ms: int) -> None:
    """Move the clock, and do first what was due by then."""
    if append_ms <= state.clock_ms:
        return
    state.clock_ms = append_ms
    while state.deadlines and state.deadlines[0][0] <= append_ms:
        due_ms, session_id = heapq.heappop(state.deadlines)
        session = state.sessions.get(session_id)
        if session is not None and session.due_ms == due_ms:
            session.due_ms = 0
            _look(state, session)


def _look(state: AudioState, session: Session) -> None:
    due_ms = next_due_ms(state, session)
    if due_ms is not None and due_ms <= state.clock_ms:
        _do_what_is_due(state, session)
    if session.id in state.sessions:
        schedule(state, session)


def _do_what_is_due(state: AudioState, session: Session) -> None:
    rules, clock_ms = state.rules, state.clock_ms
    if session.status is not Status.OPEN:
        if session.recording is not None and rules.remove_segments and any(session.kept(Kept.STORED)):
            # They were kept for a retry of those that failed, which nobody asked for.
            start_removal(state, session)
        else:
            forget(state, session)
    elif clock_ms >= session.last_ms + rules.session_idle_ms:
        state.totals["silent"] += 1
        end_session(state, session, ClosedBy.SILENCE)
    elif session.pending and clock_ms >= session.last_ms + rules.silence_ms:
        cut(state, session, everything=True)
    elif session.pending and clock_ms >= session.pending.oldest_ms + upload_after_ms(state, session):
        cut(state, session, everything=False)
    else:
        # Nothing but repeats for a while: a snapshot lets the log go.
        mark(state, session)


def idle_wanted(state: AudioState) -> bool:
    """Whether time decides anything about a session that is open."""
    return any(session.status is Status.OPEN for session in state.sessions.values())
