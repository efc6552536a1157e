"""Cuts: pending chunks become segments that are intended to be stored."""

from __future__ import annotations

from streams.audio.deadlines import schedule, upload_after_ms
from streams.audio.effects import PutSegment
from streams.audio.session import Kept, Segment, Session, Status
from streams.audio.state import AudioState, mark


def cut(state: AudioState, session: Session, everything: bool) -> None:
    """Intend what is pending to be stored: each run of consecutive seqs is a segment.

    Unless `everything`, the newest audio stays for late chunks to join, as long as it is not due itself; none may join a
    session that is full, and a run that is cut in two would be one segment too many.
    """
    rules = state.rules
    late_us = None if everything or is_full(state, session) else rules.reorder_ms * 1000
    for run in session.pending.cut(late_us, state.clock_ms - upload_after_ms(state, session)):
        segment = Segment(*run)
        session.segments[segment.first_seq] = segment
        session.intents[segment.first_seq] = None
        state.shelf.intend(session.id, segment.first_seq, segment.last_seq, state.clock_ms)
        state.effects.append(put_segment(session, segment))
    if session.deferred and session.status is Status.OPEN:
        session.deferred = not state.shelf.admit(session.id, rules.window_memory(session.opened))
        session.held_from = state.offset
    mark(state, session)
    # Where the broker's clock has gone back, what is left may be older than what was cut.
    schedule(state, session)


def is_full(state: AudioState, session: Session) -> bool:
    """Whether the session has all the segments that it may have, once what is pending is cut."""
    return len(session.segments) + session.pending.runs >= state.rules.segments_max


def put_segment(session: Session, segment: Segment) -> PutSegment:
    """What stores a segment."""
    at = (segment.first_seq, segment.last_seq, segment.first_offset, segment.last_offset)
    return PutSegment(session.opened, *at, segment.attempts)


def intent_of(session: Session, first_seq: int, last_seq: int) -> Segment | None:
    """The segment of this range while it has no outcome."""
    segment = session.segments.get(first_seq)
    return segment if segment and segment.last_seq == last_seq and segment.kept is Kept.INTENDED else None
