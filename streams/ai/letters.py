"""What the fold tells of tasks: their events."""

from __future__ import annotations

from streams.ai.state import AiState
from streams.ai.task import Mark, Task, What
from streams.ai.telling import event_of
from topics.ai_events import encode_event
from topics.records import Emit


def mark(state: AiState, task: Task, what: What, call: int = 0, value: int = 0, label: str = "") -> None:
    """Something happened to a task: it is told, and its snapshot is written."""
    attempt = task.calls[call].attempt
    mark = Mark(state.event_version, state.number, state.clock_ms, what, call, attempt, value, label)
    task.marks.append(mark)
    task.updated_ms = state.clock_ms
    emit(state, task, encode_event(event_of(task, mark, state.rules)))
    state.dirty[task.id] = state.shown[task.id] = None


def emit(state: AiState, task: Task, value: bytes) -> None:
    """An event of a task, numbered within the record being folded."""
    state.emits.append(Emit(state.rules.events, task.id.encode(), value))
    state.number += 1
