"""What a call says is written down piece by piece, and void when its attempt has come to nothing."""

from __future__ import annotations

from streams.ai.letters import emit, mark
from streams.ai.state import AiState
from streams.ai.task import Task, What
from streams.ai.telling import written
from streams.ai.text import Piece, Text
from topics.ai import Kind
from topics.ai_events import encode_event


def write(state: AiState, task: Task, number: int, kind: Kind, text: str) -> None:
    """One more piece of what a call says."""
    call = task.calls[number]
    piece = Piece(state.event_version, state.number, state.clock_ms, kind, text)
    state.chunks[task.id, number, task.texts[number].add(piece)] = None
    emit(state, task, encode_event(written(task, state.rules.partition, number, call.blocks, piece)))
    call.blocks += 1
    state.dirty[task.id] = None


def discard(state: AiState, task: Task, number: int, error_type: str, retry_after_ms: int) -> None:
    """What an attempt has written is void."""
    _clear(state, task, number)
    mark(state, task, What.DISCARDED, number, retry_after_ms, error_type)


def _clear(state: AiState, task: Task, number: int) -> None:
    for chunk in range(task.texts[number].chunks):
        state.chunks[task.id, number, chunk] = None
    task.texts[number] = Text()
