"""What an outcome changes: a segment is stored or failed, a recording made, the segments beside it removed."""

from __future__ import annotations

from streams.audio import outcomes
from streams.audio.cuts import intent_of, put_segment
from streams.audio.deadlines import schedule
from streams.audio.ending import close_session, settle, start_removal
from streams.audio.letters import announce, bury, bury_segment, bury_session, tell
from streams.audio.rows import told_ms
from streams.audio.session import TEXT_BYTES_MAX, Kept, Recording, Segment, Session, Status, shortened
from streams.audio.state import AudioState, applies, count, mark
from topics.audio_events import (
    SegmentFailed,
    SegmentStored,
    encode_event,
    segment_extension,
    segment_key,
)
from topics.deadletters import REPLAY
from topics.headers import header
from topics.records import Record


def take_outcome(state: AudioState, record: Record, outcome: outcomes.Outcome) -> None:
    """Fold what came of an effect."""
    session = state.sessions.get((record.key or b"").decode("ascii", "replace"))
    if session is None:
        if isinstance(outcome, outcomes.Retry):
            bury(state, record, "unknown_session", "a retry of a session that is not remembered")
        else:
            count(state, record, "stale")
    elif not applies(state, session, record):
        return
    elif not _fold_outcome(state, session, record, outcome):
        count(state, record, "stale")


def _fold_outcome(state: AudioState, session: Session, record: Record, outcome: outcomes.Outcome) -> bool:
    """False when it changes nothing: it came before."""
    match outcome:
        case outcomes.Stored():
            return _stored(state, session, outcome)
        case outcomes.Failed():
            return fail(state, session, outcome)
        case outcomes.Retry():
            return _retry(state, session, record, outcome)
        case outcomes.Recorded() if _of_all(session, outcome):
            session.recording = Recording(outcome.key, outcome.size, outcome.md5, outcome.duration_ms)
            session.error = ""
            close_session(state, session)
            _remove(state, session)
            state.totals["recorded"] += 1
            state.totals["recording_bytes"] += outcome.size
            state.totals["damaged"] += outcome.damaged
        case outcomes.Unrecorded() if _of_all(session, outcome):
            session.error = shortened(outcome.error)
            state.totals["unrecorded"] += 1
            state.totals["damaged"] += outcome.damaged
            bury_session(state, session, "unrecorded", outcome.error)
            close_session(state, session)
        case outcomes.Removed() if session.removing:
            session.removing = False
            for segment in session.kept(Kept.STORED):
                segment.kept, segment.updated_ms = Kept.REMOVED, state.clock_ms
                state.changed[session.id, segment.first_seq] = None
            mark(state, session)
            schedule(state, session)
        case _:
            return False
    return True


def _of_all(session: Session, outcome: outcomes.Recorded | outcomes.Unrecorded) -> bool:
    """Whether a recording is awaited, and this one was made of all segments that there are: since it was begun a failed one
    may have been asked for again, and then it is made once more."""
    if session.status is not Status.CLOSING or session.intents:
        return False
    return outcome.segments in (None, sum(1 for _ in session.kept(Kept.STORED)))


def _stored(state: AudioState, session: Session, outcome: outcomes.Stored) -> bool:
    segment = intent_of(session, outcome.first_seq, outcome.last_seq)
    if segment is None:
        return False
    segment.kept, segment.md5, segment.object_size = Kept.STORED, bytes.fromhex(outcome.md5), outcome.size
    _settled(state, session, segment, outcome.attempts, keep=session.status is Status.OPEN)
    extension = segment_extension(session.opened.format)
    tell(
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
    state.totals["damaged"] += outcome.damaged
    settle(state, session)
    return True


def fail(state: AudioState, session: Session, outcome: outcomes.Failed) -> bool:
    """A segment is not to be had: an event, and a dead letter that asks for it again. False when it was not awaited."""
    segment = intent_of(session, outcome.first_seq, outcome.last_seq)
    if segment is None:
        return False
    segment.kept, segment.error = Kept.FAILED, shortened(outcome.error)
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
    announce(state, event)
    bury_segment(state, session, segment, encode_event(event))
    state.totals["failed"] += 1
    state.totals["damaged"] += outcome.damaged
    settle(state, session)
    return True


def _settled(state: AudioState, session: Session, segment: Segment, attempts: int, keep: bool) -> None:
    segment.attempts, segment.updated_ms = attempts, state.clock_ms
    del session.intents[segment.first_seq]
    state.shelf.settle(session.id, segment.first_seq, segment.last_seq, keep)
    state.changed[session.id, segment.first_seq] = None
    mark(state, session)


def _retry(state: AudioState, session: Session, record: Record, outcome: outcomes.Retry) -> bool:
    """Once more for a failed segment; the recording of a closed session is then made again, with it."""
    segment = session.segments.get(outcome.first_seq)
    if segment is None or segment.kept is not Kept.FAILED:
        return False
    if session.removing or any(session.kept(Kept.REMOVED)):
        # A recording is made of segments, and would be made anew of this one alone.
        bury(state, record, "unknown_session", "a retry of a session whose other segments are removed")
        return True
    replay = header(record.headers, REPLAY) or b""
    segment.kept, segment.error = Kept.INTENDED, ""
    segment.replay = replay if len(replay) <= TEXT_BYTES_MAX else b""  # none of ours is longer
    session.intents[segment.first_seq] = None
    if session.status is Status.CLOSED:
        session.status = Status.CLOSING
    state.effects.append(put_segment(session, segment))
    state.totals["retried"] += 1
    mark(state, session)
    return True


def _remove(state: AudioState, session: Session) -> None:
    """Once the recording holds them all, the segments may go; while one failed, a retry needs the others."""
    if state.rules.remove_segments and not any(session.kept(Kept.FAILED)):
        start_removal(state, session)
