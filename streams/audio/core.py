"""The audio fold of one partition: chunks become segments, segments a recording.

Pure: what becomes of a record follows from the log before it and the rules. The clock is the highest append time so far;
every deadline is looked at before the record that moves the clock past it, so that how batches are split decides nothing.

Audio has no cursor of its own. A session's snapshot is written when something lasting happens to it (opened, cut, stored,
closed), and what came since is read from the log again by a restore. Three rules make that exact:

1. Below `position`, where the last committed flush stood, a record is applied only to a session whose snapshot is older,
   and silently: its letters and events are out. No deadline passes and nothing is cut there; had something been, the
   snapshot would be newer.
2. Bytes below a snapshot that a segment still needs are put back in memory. Of several records with one seq the first
   fitting one within the segment's offsets is the one that was taken, since a repeat always comes later.
3. The log is held (`safe_offset`) from the first record that either needs.
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache

import msgspec

from streams.audio import outcomes, seqs
from streams.audio import session as sessions
from streams.audio.effects import Assemble, Effect, PutSegment, RemoveSegments, Source
from streams.audio.held import Shelf
from streams.audio.rows import Rows, missing, told_ms
from streams.audio.rules import AudioRules, byte_rate
from streams.audio.session import Kept, Piece, Recording, Segment, Session, Status
from topics import audio
from topics.audio_events import (
    AudioEvent,
    ClosedBy,
    SegmentFailed,
    SegmentStored,
    SessionClosed,
    SessionOpened,
    SessionRefused,
    SessionResumed,
    encode_event,
    segment_extension,
    segment_key,
)
from topics.headers import header
from topics.malformed import Malformed
from topics.partitioning import partition_of
from topics.records import Batch, DeadLetter, Emit, Flush, Record, Unreadable
from topics.rerouting import sent_on
from topics.rows import VERSION_OFFSET_BITS

STATE_KEY = b"p"
SESSION_TAG = b"s"

_partition_of = lru_cache(maxsize=65_536)(partition_of)

ChangelogRecord = tuple[bytes, bytes | None]


class _Saved(msgspec.Struct, array_like=True):
    """The fold's own record: where its last flush stood, the clock there, totals, and what ClickHouse holds."""

    epoch: int
    position: int
    clock_ms: int
    materialised: int
    totals: dict[str, int]


@dataclass
class AudioState:
    """State of one partition. `position`: everything below is folded into what is committed; `start`: where reading began
    after the restore, so that bytes before it come from the log's reader only."""

    rules: AudioRules
    shelf: Shelf
    epoch: int = 0
    position: int = 0
    start: int = 0
    clock_ms: int = 0
    offset: int = 0
    materialised: int = 0
    sessions: dict[str, Session] = field(default_factory=dict)
    deadlines: list[tuple[int, str]] = field(default_factory=list)
    awaited: list[tuple[int, str, int]] = field(default_factory=list)  # (last offset, session, first seq)
    dirty: dict[str, None] = field(default_factory=dict)
    changed: dict[tuple[str, int], None] = field(default_factory=dict)  # segments whose rows are to be written
    tombstones: list[str] = field(default_factory=list)
    emits: list[Emit] = field(default_factory=list)
    dead: list[DeadLetter] = field(default_factory=list)
    effects: list[Effect] = field(default_factory=list)
    totals: Counter[str] = field(default_factory=Counter)


@dataclass(frozen=True)
class Sealed:
    """What a flush leaves to be shown once it has committed: rows of what changed, the clock, totals."""

    version: int
    rows: Rows
    clock_ms: int
    totals: Counter[str]


# -- step --------------------------------------------------------------------------------------------------------


def step(state: AudioState, batch: Batch) -> AudioState:
    """Fold one batch; total. What it adds is kept open in the state until `seal`."""
    for piece in batch.unreadable:
        if piece.first_offset >= state.position:
            _bury_unreadable(state, batch, piece)
    for record in batch.records():
        state.offset = record.offset
        if record.offset >= state.position:
            _pass_time(state, record.append_ms)
        _take(state, record)
    _ask_for_awaited(state, batch.end)
    return state


def _take(state: AudioState, record: Record) -> None:
    found: outcomes.Outcome | audio.AudioRecord | Malformed | None = outcomes.decode(record.value, record.headers)
    if found is None:
        found = audio.decode(record.key, record.value, record.headers, state.rules.chunk_bytes_max)
    if isinstance(found, audio.Idle):
        _count(state, record, "idle")
    elif isinstance(found, Malformed):
        _bury(state, record, found.reason, found.error)
    elif _astray(state, record):
        _send_on(state, record)
    elif isinstance(found, audio.Chunk):
        _chunk(state, record, found)
    elif isinstance(found, audio.Open):
        _open(state, record, found)
    elif isinstance(found, audio.Close):
        _close(state, record, found.session_id)
    else:
        _outcome(state, record, found)


def _astray(state: AudioState, record: Record) -> bool:
    return _partition_of(record.key or b"", state.rules.partitions) != state.rules.partition


def _send_on(state: AudioState, record: Record) -> None:
    rules = state.rules
    to = _partition_of(record.key or b"", rules.partitions)
    carried, origin = (record.key, record.value, record.headers), (rules.partition, record.offset)
    emit = sent_on(rules.source, origin, carried, to, rules.chunk_bytes_max)
    if isinstance(emit, Malformed):
        _bury(state, record, emit.reason, emit.error)
    elif record.offset >= state.position:
        state.emits.append(emit)
        _count(state, record, "rerouted")


def _applies(state: AudioState, session: Session, record: Record) -> bool:
    """Whether the session's snapshot does not have this record in it yet."""
    return record.offset >= session.applied


# -- sessions ----------------------------------------------------------------------------------------------------


def _open(state: AudioState, record: Record, opened: audio.Open) -> None:
    session = state.sessions.get(opened.session_id)
    if session is None or (session.status is Status.REFUSED and _applies(state, session, record)):
        if record.offset >= state.position:
            _admit(state, record, opened)
    elif not _applies(state, session, record):
        return
    elif session.opened != opened:
        _bury(state, record, "conflict", f"the session was opened as {_described(session.opened)}")
    elif session.status is Status.OPEN:
        _touch(state, session, record)
        _count(state, record, "resumed")
        connection = _connection(record)
        if connection is not None and record.offset >= state.position:
            _tell(state, session, SessionResumed, connection=connection)
    else:
        _count(state, record, "duplicate")


def _admit(state: AudioState, record: Record, opened: audio.Open) -> None:
    wanted = state.rules.window_bytes(opened)
    admitted = state.shelf.admit(opened.session_id, wanted)
    session = Session(opened, record.append_ms, record.offset, last_ms=record.append_ms, last_offset=record.offset)
    state.sessions[session.id] = session
    _mark(state, session)
    if not admitted and header(record.headers, audio.REFUSE) is not None:
        session.status, session.closed_ms = Status.REFUSED, state.clock_ms
        session.error = f"its window of {wanted} bytes does not fit the memory that is left"
        _tell(state, session, SessionRefused, user=opened.user, code="memory", message=session.error)
        _count(state, record, "refused")
    else:
        session.deferred = not admitted
        said = {"opened_ms": session.opened_ms, "connection": _connection(record), **_parameters(opened)}
        _tell(state, session, SessionOpened, **said)
        _count(state, record, "opened")
        if not admitted:
            _count(state, record, "deferred")
    _schedule(state, session)


def _connection(record: Record) -> str | None:
    raw = header(record.headers, audio.CONNECTION)
    return None if raw is None else raw[:64].decode("ascii", "replace")


def _parameters(opened: audio.Open) -> dict[str, object]:
    return {name: getattr(opened, name) for name in opened.__struct_fields__[1:]}


def _described(opened: audio.Open) -> str:
    return " ".join(f"{name}={value}" for name, value in _parameters(opened).items())


def _chunk(state: AudioState, record: Record, chunk: audio.Chunk) -> None:
    session = state.sessions.get(chunk.session_id)
    if session is None:
        _bury(state, record, "before_open", f"chunk {chunk.seq} of a session that was never opened")
    elif (misfit := audio.misfit(session.opened, chunk.data)) is not None:
        _bury(state, record, misfit.reason, misfit.error)
    elif not _applies(state, session, record):
        _put_back(state, session, record, chunk)
    elif session.status is Status.REFUSED:
        _bury(state, record, "refused", session.error)
    elif seqs.contains(session.ranges, chunk.seq):
        _repeat(state, session, record)
    elif session.status is not Status.OPEN:
        _bury(state, record, "after_close", f"chunk {chunk.seq} came after the session was closed")
    elif len(session.segments) >= state.rules.segments_max:
        _bury(state, record, "too_many_segments", f"the session has {len(session.segments)} segments already")
    else:
        _accept(state, session, record, chunk)


def _repeat(state: AudioState, session: Session, record: Record) -> None:
    if session.status is Status.OPEN:
        session.duplicates += 1
        _touch(state, session, record)
    _count(state, record, "duplicate")


def _accept(state: AudioState, session: Session, record: Record, chunk: audio.Chunk) -> None:
    seqs.add(session.ranges, chunk.seq)
    size = len(chunk.data)
    played_us = audio.duration_us(session.opened, chunk.data)
    if played_us is None:
        played_us = size * 1_000_000 // byte_rate(session.opened)
    session.pending[chunk.seq] = Piece(chunk.seq, record.offset, record.append_ms, size, played_us)
    session.pending_us += played_us
    session.size += size
    session.duration_us += played_us
    if not session.deferred:
        state.shelf.put(session.id, chunk.seq, chunk.data)
    # Only what is new counts as life: sent again, a record changes nothing.
    session.last_ms = max(session.last_ms, record.append_ms)
    _touch(state, session, record)
    _count(state, record, "accepted")
    rules = state.rules
    if session.pending_us >= (rules.upload_after_ms + rules.reorder_ms) * 1000 and record.offset >= state.position:
        _cut(state, session, everything=False)


def _touch(state: AudioState, session: Session, record: Record) -> None:
    """A live session's state moved: until its next snapshot, the log is needed from here."""
    session.last_offset = record.offset
    if session.fresh is None:
        session.fresh = (record.offset, record.append_ms)
        _schedule(state, session)
    elif len(session.pending) == 1:
        _schedule(state, session)


def _put_back(state: AudioState, session: Session, record: Record, chunk: audio.Chunk) -> None:
    """The snapshot has this chunk; its bytes are only in the log."""
    if session.deferred or not session.live:
        return
    piece = session.pending.get(chunk.seq)
    if piece is not None:
        wanted = piece.offset == record.offset
    else:
        segment = _segment_with(session, chunk.seq)
        wanted = segment is not None and segment.first_offset <= record.offset <= segment.last_offset
    if wanted:
        state.shelf.put(session.id, chunk.seq, chunk.data)


def _segment_with(session: Session, seq: int) -> Segment | None:
    for first_seq in session.intents:
        segment = session.segments[first_seq]
        if first_seq <= seq <= segment.last_seq:
            return segment
    return None


def _close(state: AudioState, record: Record, session_id: str) -> None:
    session = state.sessions.get(session_id)
    if session is None:
        _bury(state, record, "before_open", "close of a session that was never opened")
    elif not _applies(state, session, record):
        return
    elif session.status is Status.REFUSED:
        _bury(state, record, "refused", session.error)
    elif session.status is Status.OPEN:
        session.last_offset = record.offset
        _end(state, session, ClosedBy.CLIENT)
        _count(state, record, "closed")
    else:
        _count(state, record, "duplicate")


# -- cuts --------------------------------------------------------------------------------------------------------


def _cut(state: AudioState, session: Session, everything: bool) -> None:
    """Intend what is pending to be stored: each run of consecutive seqs is a segment.

    Unless `everything`, the newest audio stays for late chunks to join, as long as it is not due itself.
    """
    pieces = sorted(session.pending.values())
    end = len(pieces) if everything else _reorder_point(state, pieces)
    for run in sessions.runs(pieces[:end]):
        segment = sessions.segment_of(run)
        session.segments[segment.first_seq] = segment
        session.intents[segment.first_seq] = None
        state.shelf.intend(session.id, segment.first_seq, segment.last_seq, state.clock_ms)
        state.effects.append(_put_segment(session, segment))
    for piece in pieces[:end]:
        del session.pending[piece.seq]
        session.pending_us -= piece.duration_us
    if session.deferred and session.status is Status.OPEN:
        session.deferred = not state.shelf.admit(session.id, state.rules.window_bytes(session.opened))
        session.held_from = state.offset
    _mark(state, session)


def _reorder_point(state: AudioState, pieces: list[Piece]) -> int:
    at, held_us = len(pieces), 0
    while at > 0:
        piece = pieces[at - 1]
        held_us += piece.duration_us
        due = piece.append_ms + state.rules.upload_after_ms <= state.clock_ms
        if due or held_us > state.rules.reorder_ms * 1000:
            break
        at -= 1
    return at


def _put_segment(session: Session, segment: Segment) -> PutSegment:
    at = (segment.first_seq, segment.last_seq, segment.first_offset, segment.last_offset)
    return PutSegment(session.opened, *at, segment.attempts)


def _end(state: AudioState, session: Session, by: ClosedBy) -> None:
    session.status, session.closed_by, session.closed_ms = Status.CLOSING, by, state.clock_ms
    state.totals["sessions_ended"] += 1
    state.totals["session_ms"] += max(0, session.last_ms - session.opened_ms)
    _cut(state, session, everything=True)
    state.shelf.end(session.id)
    _settle(state, session)
    _schedule(state, session)


def _settle(state: AudioState, session: Session) -> None:
    """An ended session whose segments all have an outcome is made a recording, or is over if there is nothing of it."""
    if session.status is not Status.CLOSING or session.intents:
        return
    state.shelf.release(session.id)
    if any(session.kept(Kept.STORED)):
        state.effects.append(_assemble(session))
    else:
        _over(state, session)


def _assemble(session: Session) -> Assemble:
    assert session.closed_by is not None
    parts = session.in_order()
    stored = [segment for segment in parts if segment.kept is Kept.STORED]
    return Assemble(
        session.opened,
        tuple(Source(s.first_seq, s.last_seq, s.size, s.object_size, s.md5.hex()) for s in stored),
        tuple((s.first_seq, s.last_seq) for s in parts if s.kept is Kept.FAILED),
        session.opened_ms,
        session.closed_ms,
        session.closed_by,
    )


def _over(state: AudioState, session: Session) -> None:
    session.status = Status.CLOSED
    recording, by = session.recording, session.closed_by or ClosedBy.CLIENT
    _tell(
        state,
        session,
        SessionClosed,
        closed_by=by,
        recording=recording and recording.key,
        md5=recording and recording.md5,
        duration_ms=recording.duration_ms if recording else 0,
        size_bytes=recording.size if recording else 0,
        gaps=missing(session),
    )
    _mark(state, session)
    _schedule(state, session)


# -- outcomes ----------------------------------------------------------------------------------------------------


def _outcome(state: AudioState, record: Record, outcome: outcomes.Outcome) -> None:
    session = state.sessions.get((record.key or b"").decode("ascii", "replace"))
    if session is None:
        if isinstance(outcome, outcomes.Retry):
            _bury(state, record, "unknown_session", "a retry of a session that is not remembered")
        else:
            _count(state, record, "stale")
    elif not _applies(state, session, record):
        return
    elif not _fold_outcome(state, session, outcome):
        _count(state, record, "stale")


def _fold_outcome(state: AudioState, session: Session, outcome: outcomes.Outcome) -> bool:
    """False when it changes nothing: it came before."""
    match outcome:
        case outcomes.Stored():
            return _stored(state, session, outcome)
        case outcomes.Failed():
            return _failed(state, session, outcome)
        case outcomes.Retry():
            return _retry(state, session, outcome)
        case outcomes.Recorded() if session.status is Status.CLOSING:
            session.recording = Recording(outcome.key, outcome.size, outcome.md5, outcome.duration_ms)
            session.error = ""
            _over(state, session)
            _remove(state, session)
            state.totals["recorded"] += 1
            state.totals["recording_bytes"] += outcome.size
        case outcomes.Unrecorded() if session.status is Status.CLOSING:
            session.error = outcome.error
            state.totals["unrecorded"] += 1
            _bury_session(state, session, "unrecorded", outcome.error)
            _over(state, session)
        case outcomes.Removed() if session.removing:
            session.removing = False
            for segment in session.kept(Kept.STORED):
                segment.kept, segment.updated_ms = Kept.REMOVED, state.clock_ms
                state.changed[session.id, segment.first_seq] = None
            _mark(state, session)
            _schedule(state, session)
        case _:
            return False
    return True


def _intent(session: Session, first_seq: int, last_seq: int) -> Segment | None:
    segment = session.segments.get(first_seq)
    return segment if segment and segment.last_seq == last_seq and segment.kept is Kept.INTENDED else None


def _stored(state: AudioState, session: Session, outcome: outcomes.Stored) -> bool:
    segment = _intent(session, outcome.first_seq, outcome.last_seq)
    if segment is None:
        return False
    segment.kept, segment.md5, segment.object_size = Kept.STORED, bytes.fromhex(outcome.md5), outcome.size
    _settled(state, session, segment, outcome.attempts, keep=session.status is Status.OPEN)
    extension = segment_extension(session.opened.format)
    _tell(
        state,
        session,
        SegmentStored,
        first_seq=segment.first_seq,
        last_seq=segment.last_seq,
        stored_seq=session.stored_seq(),
        key=segment_key(session.id, segment.first_seq, segment.last_seq, extension),
        size_bytes=outcome.size,
        md5=outcome.md5,
        duration_ms=told_ms(session, segment.duration_us),
        first_offset=segment.first_offset,
    )
    state.totals["stored"] += 1
    state.totals["segment_bytes"] += outcome.size
    _settle(state, session)
    return True


def _failed(state: AudioState, session: Session, outcome: outcomes.Failed) -> bool:
    segment = _intent(session, outcome.first_seq, outcome.last_seq)
    if segment is None:
        return False
    segment.kept, segment.error = Kept.FAILED, outcome.error
    _settled(state, session, segment, outcome.attempts, keep=False)
    event = SegmentFailed(
        session_id=session.id,
        source_partition=state.rules.partition,
        source_offset=segment.last_offset,
        first_seq=segment.first_seq,
        last_seq=segment.last_seq,
        first_offset=segment.first_offset,
        attempts=outcome.attempts,
        error=outcome.error,
    )
    state.emits.append(_event(state, session, event))
    _bury_session(state, session, "segment_failed", outcome.error, segment.first_offset, encode_event(event))
    state.totals["failed"] += 1
    _settle(state, session)
    return True


def _settled(state: AudioState, session: Session, segment: Segment, attempts: int, keep: bool) -> None:
    segment.attempts, segment.updated_ms = attempts, state.clock_ms
    del session.intents[segment.first_seq]
    state.shelf.settle(session.id, segment.first_seq, segment.last_seq, keep)
    state.changed[session.id, segment.first_seq] = None
    _mark(state, session)


def _retry(state: AudioState, session: Session, outcome: outcomes.Retry) -> bool:
    """Once more for a failed segment; the recording of a closed session is then made again, with it."""
    segment = session.segments.get(outcome.first_seq)
    if segment is None or segment.kept is not Kept.FAILED:
        return False
    segment.kept, segment.error = Kept.INTENDED, ""
    session.intents[segment.first_seq] = None
    if session.status is Status.CLOSED:
        session.status = Status.CLOSING
    state.effects.append(_put_segment(session, segment))
    state.totals["retried"] += 1
    _mark(state, session)
    return True


def _remove(state: AudioState, session: Session) -> None:
    """Once the recording holds them all, the segments may go; while one failed, a retry needs the others."""
    if state.rules.remove_segments and not any(session.kept(Kept.FAILED)):
        _start_removal(state, session)


def _start_removal(state: AudioState, session: Session) -> None:
    session.removing = True
    state.effects.append(_removal(session))


def _removal(session: Session) -> RemoveSegments:
    stored = sorted((s.first_seq, s.last_seq) for s in session.kept(Kept.STORED))
    return RemoveSegments(session.opened, tuple(stored))


# -- time --------------------------------------------------------------------------------------------------------


def _pass_time(state: AudioState, append_ms: int) -> None:
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
    due_ms = _due_ms(state, session)
    if due_ms is not None and due_ms <= state.clock_ms:
        _do_what_is_due(state, session)
    if session.id in state.sessions:
        _schedule(state, session)


def _do_what_is_due(state: AudioState, session: Session) -> None:
    rules, clock_ms = state.rules, state.clock_ms
    if session.status is not Status.OPEN:
        if session.recording is not None and rules.remove_segments and any(session.kept(Kept.STORED)):
            # They were kept for a retry of those that failed, which nobody asked for.
            _start_removal(state, session)
        else:
            _forget(state, session)
    elif clock_ms >= session.last_ms + rules.session_idle_ms:
        state.totals["silent"] += 1
        _end(state, session, ClosedBy.SILENCE)
    elif session.pending and clock_ms >= session.last_ms + rules.silence_ms:
        _cut(state, session, everything=True)
    elif session.pending and clock_ms >= _oldest_ms(session) + rules.upload_after_ms:
        _cut(state, session, everything=False)
    else:
        # Nothing but repeats for a while: a snapshot lets the log go.
        _mark(state, session)


def _oldest_ms(session: Session) -> int:
    return next(iter(session.pending.values())).append_ms


def _due_ms(state: AudioState, session: Session) -> int | None:
    """When time alone changes something about a session next."""
    rules = state.rules
    if session.status is Status.CLOSING:
        return None
    if session.status is not Status.OPEN:
        return None if session.removing else session.closed_ms + rules.remember_ms
    due = [session.last_ms + rules.session_idle_ms]
    if session.pending:
        due += [session.last_ms + rules.silence_ms, _oldest_ms(session) + rules.upload_after_ms]
    if session.fresh is not None and session.id not in state.dirty:
        due.append(session.fresh[1] + rules.upload_after_ms)
    return min(due)


def _schedule(state: AudioState, session: Session) -> None:
    due_ms = _due_ms(state, session)
    if due_ms is not None and (session.due_ms == 0 or due_ms < session.due_ms):
        session.due_ms = due_ms
        heapq.heappush(state.deadlines, (due_ms, session.id))


def _forget(state: AudioState, session: Session) -> None:
    """Its id may be used anew."""
    del state.sessions[session.id]
    state.dirty.pop(session.id, None)
    state.tombstones.append(session.id)


# -- what goes out -----------------------------------------------------------------------------------------------


def _mark(state: AudioState, session: Session) -> None:
    """The next flush writes the session's snapshot."""
    assert state.offset >= state.position, "nothing lasting happens below the committed position"
    state.dirty[session.id] = None


def _count(state: AudioState, record: Record, name: str) -> None:
    if record.offset >= state.position:
        state.totals[name] += 1


def _tell(state: AudioState, session: Session, event: type, **fields: object) -> None:
    where = {"source_partition": state.rules.partition, "source_offset": state.offset}
    state.emits.append(_event(state, session, event(session_id=session.id, **where, **fields)))


def _event(state: AudioState, session: Session, event: AudioEvent) -> Emit:
    return Emit(state.rules.events, session.id.encode(), encode_event(event))


def _bury(state: AudioState, record: Record, reason: str, error: str) -> None:
    if record.offset < state.position:
        return
    where = (state.rules.source, state.rules.partition, record.offset, record.append_ms)
    state.dead.append(DeadLetter(reason, error, *where, record.key, record.value, record.headers))
    state.totals["dead"] += 1
    state.totals["spoiled"] += reason == audio.Reason.MD5_MISMATCH


def _bury_session(
    state: AudioState, session: Session, reason: str, error: str, offset: int | None = None, value: bytes | None = None
) -> None:
    """A dead letter of what was to be made of a session. That of a segment is also the record that asks for it again."""
    headers = [("type", b"retry")] if value is not None else []
    at = (state.rules.source, state.rules.partition, state.offset if offset is None else offset, state.clock_ms)
    state.dead.append(DeadLetter(reason, error, *at, session.id.encode(), value, headers))
    state.totals["dead"] += 1


def _bury_unreadable(state: AudioState, batch: Batch, piece: Unreadable) -> None:
    at = (batch.topic, batch.partition, piece.first_offset, piece.append_ms)
    state.dead.append(DeadLetter("unreadable", piece.error, *at, None, piece.data))
    state.totals["dead"] += 1


def _ask_for_awaited(state: AudioState, end: int) -> None:
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
        state.effects.append(_put_segment(session, segment))


# -- flush -------------------------------------------------------------------------------------------------------


def seal(state: AudioState, position: int, version: int) -> Flush:
    """Encode what was folded since the last seal. `position` is the next offset to fold, `version` that of the rows."""
    state.offset = max(state.offset, position)
    changelog: list[ChangelogRecord] = []
    rows = Rows()
    for session_id in state.dirty:
        session = state.sessions[session_id]
        changelog.append((session_key(session_id), sessions.encode(session.save(position, version))))
        changed = [segment for segment in session.segments.values() if (session_id, segment.first_seq) in state.changed]
        rows.add(session, changed, state.rules.partition)
        _schedule(state, session)
    changelog += [(session_key(session_id), None) for session_id in state.tombstones]
    state.position = max(state.position, position)
    totals = Counter(state.totals)
    record = _Saved(state.epoch, state.position, state.clock_ms, state.materialised, dict(totals))
    changelog.append((STATE_KEY, msgspec.msgpack.encode(record)))
    flush = Flush(
        position,
        safe_offset=safe_offset(state, position),
        changelog=changelog,
        emits=state.emits,
        dead=state.dead,
        effects=[effect for effect in state.effects if wanted(state, effect)],
        token=Sealed(version, rows, state.clock_ms, totals),
    )
    state.dirty, state.changed, state.tombstones = {}, {}, []
    state.emits, state.dead, state.effects = [], [], []
    return flush


def wanted(state: AudioState, effect: Effect) -> bool:
    """Whether an effect has no outcome yet: after a take-over the log may hold it further on."""
    session = state.sessions.get(effect.opened.session_id)
    if session is None:
        return False
    match effect:
        case PutSegment():
            return _intent(session, effect.first_seq, effect.last_seq) is not None
        case Assemble():
            return session.status is Status.CLOSING and not session.intents
        case RemoveSegments():
            return session.removing


def session_key(session_id: str) -> bytes:
    """A session's key in the changelog."""
    return SESSION_TAG + session_id.encode()


def safe_offset(state: AudioState, position: int) -> int:
    """Where the log must still be read from by whoever takes over."""
    return min([position, *_needed(state)])


def _needed(state: AudioState) -> Iterator[int]:
    for session in state.sessions.values():
        if session.fresh is not None:
            yield session.fresh[0]
        if session.deferred or not session.live:
            continue
        for piece in session.pending.values():
            if piece.offset >= max(state.start, session.held_from):
                yield piece.offset
                break
        for first_seq in session.intents:
            if session.awaiting or state.shelf.intended(session.id, first_seq):
                yield max(state.start, session.segments[first_seq].first_offset)


# -- restore -----------------------------------------------------------------------------------------------------


def restore(state: AudioState, records: Sequence[ChangelogRecord]) -> None:
    """Apply changelog records in log order."""
    for key, value in records:
        if key == STATE_KEY and value is not None:
            saved = msgspec.msgpack.decode(value, type=_Saved)
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
            session.deferred = not state.shelf.admit(session.id, state.rules.window_bytes(session.opened))
        if anew:
            _give_up(state, session)
            state.effects = []  # `undone` tells them
        _await(state, session)
        session.removing = session.recording is not None and _unremoved(state, session)
        _schedule(state, session)
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
        _cut(state, session, everything=True)
    for first_seq in list(session.intents):
        segment = session.segments[first_seq]
        lost = outcomes.Failed(first_seq, segment.last_seq, segment.attempts, "the log that held it is gone")
        _failed(state, session, lost)


def undone(state: AudioState) -> Iterable[Effect]:
    """Effects without an outcome, as the restored state has them; those that wait for bytes to be read again come later."""
    waiting = {(session_id, first_seq) for _, session_id, first_seq in state.awaited}
    for session in state.sessions.values():
        for first_seq in session.intents:
            if (session.id, first_seq) not in waiting:
                yield _put_segment(session, session.segments[first_seq])
        if session.status is Status.CLOSING and not session.intents:
            yield _assemble(session)
        if session.removing:
            yield _removal(session)


def unmaterialised(state: AudioState) -> Rows:
    """What ClickHouse may lack after a restore: sessions newer than it is known to hold, with all their segments."""
    rows = Rows()
    for session in state.sessions.values():
        if session.version > state.materialised:
            rows.add(session, session.segments.values(), state.rules.partition)
    return rows


def idle_wanted(state: AudioState) -> bool:
    """Whether time decides anything about a session that is open."""
    return any(session.status is Status.OPEN for session in state.sessions.values())
