"""A session's end: the last cut, the recording once all segments have an outcome, what is removed and forgotten after."""

from __future__ import annotations

from streams.audio.cuts import cut
from streams.audio.deadlines import schedule
from streams.audio.effects import Assemble, RemoveSegments, Source
from streams.audio.letters import tell
from streams.audio.rows import missing
from streams.audio.session import Kept, Session, Status
from streams.audio.state import AudioState, mark
from topics.audio_events import ClosedBy, SessionClosed


def end_session(state: AudioState, session: Session, by: ClosedBy) -> None:
    """Nothing more is taken: the last cut, and the recording when all is stored."""
    session.status, session.closed_by, session.closed_ms = Status.CLOSING, by, state.clock_ms
    state.totals["sessions_ended"] += 1
    state.totals["session_ms"] += max(0, session.last_ms - session.opened_ms)
    cut(state, session, everything=True)
    state.shelf.end(session.id)
    settle(state, session)
    schedule(state, session)


def settle(state: AudioState, session: Session) -> None:
    """An ended session whose segments all have an outcome is made a recording, or is over if there is nothing of it."""
    if session.status is not Status.CLOSING or session.intents:
        return
    state.shelf.release(session.id)
    if any(session.kept(Kept.STORED)):
        state.effects.append(assembly(session))
    else:
        close_session(state, session)


def assembly(session: Session) -> Assemble:
    """What makes the recording of a session."""
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


def close_session(state: AudioState, session: Session) -> None:
    """The session is over, with its recording or without one."""
    session.status = Status.CLOSED
    recording, by = session.recording, session.closed_by or ClosedBy.CLIENT
    tell(
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
    mark(state, session)
    schedule(state, session)


def start_removal(state: AudioState, session: Session) -> None:
    """Have the segments removed."""
    session.removing = True
    state.effects.append(removal(session))


def removal(session: Session) -> RemoveSegments:
    """What removes the stored segments of a session."""
    stored = sorted((s.first_seq, s.last_seq) for s in session.kept(Kept.STORED))
    return RemoveSegments(session.opened, tuple(stored))


def forget(state: AudioState, session: Session) -> None:
    """Its id may be used anew."""
    del state.sessions[session.id]
    state.dirty.pop(session.id, None)
    state.tombstones.append(session.id)
