"""What the fold tells: events of sessions, and dead letters of what it could not use."""

from __future__ import annotations

from streams.audio.session import Segment, Session
from streams.audio.state import AudioState
from topics import audio
from topics.audio_events import AudioEvent, encode_event
from topics.deadletters import REPLAY
from topics.records import Batch, DeadLetter, Emit, Record, Unreadable


def tell(state: AudioState, session: Session, event: type, **fields: object) -> None:
    """An event of a session, at the record that is being folded."""
    where = {"source_partition": state.rules.partition, "source_offset": state.offset}
    announce(state, event(session_id=session.id, **where, **fields))


def announce(state: AudioState, event: AudioEvent) -> None:
    """An event, with the coordinates that it has."""
    state.emits.append(Emit(state.rules.events, event.session_id.encode(), encode_event(event)))


def bury(state: AudioState, record: Record, reason: str, error: str) -> None:
    """A dead letter of a record, unless an earlier flush wrote it."""
    if record.offset < state.position:
        return
    state.dead.append(DeadLetter.of_record(state.rules.source, state.rules.partition, record, reason, error))
    state.totals["dead"] += 1
    state.totals["spoiled"] += reason == audio.Reason.MD5_MISMATCH


def bury_session(state: AudioState, session: Session, reason: str, error: str) -> None:
    """A dead letter of what was to be made of a session."""
    at = (state.rules.source, state.rules.partition, state.offset, state.clock_ms)
    state.dead.append(DeadLetter(reason, error, *at, session.id.encode(), None))
    state.totals["dead"] += 1


def bury_segment(state: AudioState, session: Session, segment: Segment, description: bytes) -> None:
    """A dead letter of a failed segment, which is also the record that asks for it again."""
    headers: list[tuple[str, bytes]] = [("type", b"retry")]
    if segment.replay:
        headers.append((REPLAY, segment.replay))
    at = (state.rules.source, state.rules.partition, segment.first_offset, state.clock_ms)
    state.dead.append(DeadLetter("segment_failed", segment.error, *at, session.id.encode(), description, headers))
    state.totals["dead"] += 1


def bury_unreadable(state: AudioState, batch: Batch, piece: Unreadable) -> None:
    """A dead letter of bytes that are no records."""
    state.dead.append(DeadLetter.unreadable(batch, piece, piece.error))
    state.totals["dead"] += 1
