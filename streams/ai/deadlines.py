"""Deadlines: when time alone changes something about a task, and the heap of who is next."""

from __future__ import annotations

import heapq

from streams.ai.state import AiState
from streams.ai.task import CallState, Task
from topics.ai import Status


def schedule(state: AiState, task: Task) -> None:
    """Have the task looked at when it is due."""
    due_ms = _due_ms(state, task)
    if due_ms is not None and (task.due_ms == 0 or due_ms < task.due_ms):
        task.due_ms = due_ms
        heapq.heappush(state.deadlines, (due_ms, task.id))


def _due_ms(state: AiState, task: Task) -> int | None:
    """When time alone changes something about a task next."""
    if task.status.final:
        return None
    due = [call.lease_ms for call in task.calls if call.state is CallState.RUNNING]
    due += [call.due_ms for call in task.calls if call.state is CallState.PAUSED]
    if task.status is Status.PROCESSING:
        due.append(task.deadline_ms)
    return min((at for at in due if at > state.clock_ms), default=None)


def first_due(state: AiState) -> Task | None:
    """The unfinished task whose deadline is the next."""
    while state.deadlines:
        due_ms, task_id = state.deadlines[0]
        task = state.tasks.get(task_id)
        if task is not None and task.due_ms == due_ms and not task.status.final:
            return task
        heapq.heappop(state.deadlines)
    return None


def waits(task: Task) -> bool:
    """Whether a task under way has calls that wait for a slot."""
    return task.status is Status.PROCESSING and any(call.state is CallState.WAITING for call in task.calls)
