"""Cuts: pending chunks become segments that are intended to be stored."""

from __future__ import annotations

from streams.audio import session as sessions
from streams.audio.effects import PutSegment
from streams.audio.session import Kept, Piece, Segment, Session, Status
from streams.audio.state import AudioState, mark


def cut(state: AudioState, session: Session, everything: bool) -> None:
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
        state.effects.append(put_segment(session, segment))
    for piece in pieces[:end]:
        del session.pending[piece.seq]
        session.pending_us -= piece.duration_us
    if session.deferred and session.status is Status.OPEN:
        session.deferred = not state.shelf.admit(session.id, state.rules.window_bytes(session.opened))
        session.held_from = state.offset
    mark(state, session)


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


def put_segment(session: Session, segment: Segment) -> PutSegment:
    """What stores a segment."""
    at = (segment.first_seq, segment.last_seq, segment.first_offset, segment.last_offset)
    return PutSegment(session.opened, *at, segment.attempts)


def intent_of(session: Session, first_seq: int, last_seq: int) -> Segment | None:
    """The segment of this range while it has no outcome."""
    segment = session.segments.get(first_seq)
    return segment if segment and segment.last_seq == last_seq and segment.kept is Kept.INTENDED else None
