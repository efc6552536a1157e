"""The producers' records: a session is opened, its chunks are taken, it is closed."""

from __future__ import annotations

from streams.audio import seqs
from streams.audio.cuts import cut, is_full
from streams.audio.deadlines import schedule, upload_after_ms
from streams.audio.ending import end_session
from streams.audio.letters import bury, tell
from streams.audio.pending import Piece
from streams.audio.rules import byte_rate
from streams.audio.session import Segment, Session, Status
from streams.audio.state import AudioState, applies, count, mark
from topics import audio
from topics.audio_events import ClosedBy, SessionOpened, SessionRefused, SessionResumed
from topics.headers import header
from topics.records import Record


def take_open(state: AudioState, record: Record, opened: audio.Open) -> None:
    """A session begins, or its producer is back."""
    session = state.sessions.get(opened.session_id)
    if session is None or (session.status is Status.REFUSED and applies(state, session, record)):
        if record.offset >= state.position:
            _admit(state, record, opened)
    elif not applies(state, session, record):
        return
    elif session.opened != opened:
        bury(state, record, "conflict", f"the session was opened as {_described(session.opened)}")
    elif session.status is Status.OPEN:
        _touch(state, session, record)
        count(state, record, "resumed")
        connection = _connection(record)
        if connection is not None and record.offset >= state.position:
            tell(state, session, SessionResumed, connection=connection)
    else:
        count(state, record, "duplicate")


def _admit(state: AudioState, record: Record, opened: audio.Open) -> None:
    wanted = state.rules.window_memory(opened)
    admitted = state.shelf.admit(opened.session_id, wanted)
    session = Session(opened, record.append_ms, record.offset, last_ms=record.append_ms, last_offset=record.offset)
    state.sessions[session.id] = session
    mark(state, session)
    if not admitted and header(record.headers, audio.REFUSE) is not None:
        session.status, session.closed_ms = Status.REFUSED, state.clock_ms
        session.error = f"its window of {wanted} bytes does not fit the memory that is left"
        tell(state, session, SessionRefused, user=opened.user, code="memory", message=session.error)
        count(state, record, "refused")
    else:
        session.deferred = not admitted
        said = {"opened_ms": session.opened_ms, "connection": _connection(record), **_parameters(opened)}
        tell(state, session, SessionOpened, **said)
        count(state, record, "opened")
        if not admitted:
            count(state, record, "deferred")
    schedule(state, session)


def _connection(record: Record) -> str | None:
    raw = header(record.headers, audio.CONNECTION)
    return None if raw is None else raw[:64].decode("ascii", "replace")


def _parameters(opened: audio.Open) -> dict[str, object]:
    return {name: getattr(opened, name) for name in opened.__struct_fields__[1:]}


def _described(opened: audio.Open) -> str:
    return " ".join(f"{name}={value}" for name, value in _parameters(opened).items())


def take_chunk(state: AudioState, record: Record, chunk: audio.Chunk) -> None:
    """A chunk is accepted, known already, put back in memory, or of no use."""
    session = state.sessions.get(chunk.session_id)
    if session is None:
        bury(state, record, "before_open", f"chunk {chunk.seq} of a session that was never opened")
    elif (misfit := audio.misfit(session.opened, chunk.data)) is not None:
        bury(state, record, misfit.reason, misfit.error)
    elif not applies(state, session, record):
        _put_back(state, session, record, chunk)
    elif session.status is Status.REFUSED:
        bury(state, record, "refused", session.error)
    elif seqs.contains(session.ranges, chunk.seq):
        _repeat(state, session, record)
    elif session.status is not Status.OPEN:
        bury(state, record, "after_close", f"chunk {chunk.seq} came after the session was closed")
    elif is_full(state, session):
        bury(
            state, record, "too_many_segments", f"the session's audio so far makes {state.rules.segments_max} segments"
        )
    else:
        _accept(state, session, record, chunk)


def _repeat(state: AudioState, session: Session, record: Record) -> None:
    if session.status is Status.OPEN:
        session.duplicates += 1
        _touch(state, session, record)
    count(state, record, "duplicate")


def _accept(state: AudioState, session: Session, record: Record, chunk: audio.Chunk) -> None:
    seqs.add(session.ranges, chunk.seq)
    session.taken += 1
    size = len(chunk.data)
    played_us = audio.duration_us(session.opened, chunk.data)
    if played_us is None:
        played_us = size * 1_000_000 // byte_rate(session.opened)
    session.pending.add(Piece(chunk.seq, record.offset, record.append_ms, size, played_us))
    session.size += size
    session.duration_us += played_us
    if not session.deferred:
        state.shelf.put(session.id, chunk.seq, chunk.data)
    # Only what is new counts as life: sent again, a record changes nothing.
    session.last_ms = max(session.last_ms, record.append_ms)
    _touch(state, session, record)
    count(state, record, "accepted")
    enough_us = (upload_after_ms(state, session) + state.rules.reorder_ms) * 1000
    too_many = len(session.pending) >= state.rules.pending_max
    if (too_many or session.pending.duration_us >= enough_us) and record.offset >= state.position:
        cut(state, session, everything=too_many)


def _touch(state: AudioState, session: Session, record: Record) -> None:
    """A live session's state moved: until its next snapshot, the log is needed from here."""
    session.last_offset = record.offset
    if session.fresh is None:
        session.fresh = (record.offset, record.append_ms)
        schedule(state, session)
    elif len(session.pending) == 1:
        schedule(state, session)


def _put_back(state: AudioState, session: Session, record: Record, chunk: audio.Chunk) -> None:
    """The snapshot has this chunk; its bytes are only in the log."""
    if session.deferred or not session.live:
        return
    offset = session.pending.offset_of(chunk.seq)
    if offset is not None:
        wanted = offset == record.offset
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


def take_close(state: AudioState, record: Record, session_id: str) -> None:
    """A session ends by its producer's word."""
    session = state.sessions.get(session_id)
    if session is None:
        bury(state, record, "before_open", "close of a session that was never opened")
    elif not applies(state, session, record):
        return
    elif session.status is Status.REFUSED:
        bury(state, record, "refused", session.error)
    elif session.status is Status.OPEN:
        session.last_offset = record.offset
        end_session(state, session, ClosedBy.CLIENT)
        count(state, record, "closed")
    else:
        count(state, record, "duplicate")
