"""Deadlines: when time alone changes something about a session, and the heap of who is next."""

from __future__ import annotations

import heapq

from streams.audio.session import Session, Status
from streams.audio.state import AudioState


def schedule(state: AudioState, session: Session) -> None:
    """Have the session looked at when it is due."""
    due_ms = next_due_ms(state, session)
    if due_ms is not None and (session.due_ms == 0 or due_ms < session.due_ms):
        session.due_ms = due_ms
        heapq.heappush(state.deadlines, (due_ms, session.id))


def upload_after_ms(state: AudioState, session: Session) -> int:
    """How much audio the session's next segment holds, and the longest that a chunk waits for it."""
    rules = state.rules
    return rules.upload_after_ms if session.segments else rules.first_upload_after_ms(session.id)


def next_due_ms(state: AudioState, session: Session) -> int | None:
    """When time alone changes something about a session next."""
    rules = state.rules
    if session.status is Status.CLOSING:
        return None
    if session.status is not Status.OPEN:
        return None if session.removing else session.closed_ms + rules.remember_ms
    due = [session.last_ms + rules.session_idle_ms]
    if session.pending:
        due += [session.last_ms + rules.silence_ms, session.pending.oldest_ms + upload_after_ms(state, session)]
    if session.fresh is not None and session.id not in state.dirty:
        due.append(session.fresh[1] + rules.upload_after_ms)
    return min(due)
