"""A new owner of the partition: what earlier ones had under way, and had no word of, is lost and begun again."""

from __future__ import annotations

from streams.ai.clock import do_what_is_due
from streams.ai.deadlines import schedule
from streams.ai.effects import SendWebhook
from streams.ai.ending import fail
from streams.ai.granting import free, go_first
from streams.ai.state import AiState
from streams.ai.task import CallState, Task, Webhook
from streams.ai.writing import discard
from topics.ai import Status


def seat_owner(state: AiState, term: int) -> None:
    """A new owner: what earlier ones had under way, and had no word of, is lost. Of a later term than this process's own it
    is nobody's word, or this process is fenced and commits nothing more."""
    if term <= state.term or 0 <= state.seat < term:
        state.totals["stale"] += 1
        return
    state.term = term
    for task in list(state.tasks.values()):
        if task.status.final:
            if task.webhook is Webhook.WANTED:
                state.effects.append(SendWebhook(task.id))
            continue
        if task.status is Status.PROCESSING:
            _take_over(state, task)


def _take_over(state: AiState, task: Task) -> None:
    # The time in which nobody worked is not the task's.
    task.deadline_ms = state.clock_ms + state.rules.deadline_ms
    for number in list(task.running()):
        _lost(state, task, number)
        if task.status.final:
            return
    do_what_is_due(state, task)
    task.due_ms = 0
    schedule(state, task)


def _lost(state: AiState, task: Task, number: int) -> None:
    call = task.calls[number]
    free(state, task, call, None)
    call.lost += 1
    state.totals["lost_calls"] += 1
    if call.lost > state.rules.lost_max:
        call.state = CallState.GIVEN_UP
        fail(state, task, "lost_too_often", f"its worker died {call.lost} times while the model was called")
        return
    go_first(state, task, number)
    discard(state, task, number, "lost", 0)
