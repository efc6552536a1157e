"""A task's end: the first final record wins, and what is still under way or waits is given up."""

from __future__ import annotations

from streams.ai.deadlines import schedule
from streams.ai.effects import Abandon, SendWebhook
from streams.ai.granting import free, leave
from streams.ai.letters import mark
from streams.ai.letting_go import keep
from streams.ai.state import SEGMENT_TAG, AiState, key_of
from streams.ai.task import CallState, Task, Webhook, What
from streams.runtime.burying import bury_origin
from topics import ai
from topics.ai import Status


def finish(state: AiState, task: Task, status: Status) -> None:
    """The task is over; whatever comes later changes nothing."""
    if any(True for _ in task.running()):
        state.effects.append(Abandon(task.id))
    for number, call in enumerate(task.calls):
        if call.state is CallState.RUNNING:
            free(state, task, call, None)
        elif call.state is CallState.WAITING:
            leave(state, task, number)
        if call.state is not CallState.DONE:
            call.state = CallState.GIVEN_UP
    task.status, task.finished_ms = status, state.clock_ms
    state.finished[task.id] = None
    _drop_parts(state, task)
    keep(state, task)
    del state.open[task.id]
    state.totals[status.value] += 1
    state.totals["task_ms"] += state.clock_ms - task.accepted_ms
    mark(state, task, {"completed": What.COMPLETED, "failed": What.FAILED}.get(status, What.CANCELLED))
    if task.webhook is Webhook.WANTED:
        state.effects.append(SendWebhook(task.id))
    schedule(state, task)


def _drop_parts(state: AiState, task: Task) -> None:
    """The segments of its question are asked about no more."""
    state.tombstones += [key_of(SEGMENT_TAG, task.id, number) for number in range(len(task.parts))]
    task.parts = []


def fail(state: AiState, task: Task, error_type: str, error: str) -> None:
    """The task is over without an answer, and becomes a dead letter."""
    task.error_type, task.error = error_type, error[: ai.MAX_ERROR_CHARS]
    finish(state, task, Status.FAILED)
    bury_origin(state, task.id, task.origin, error_type, task.error, task.begun)


def webhook_sent(state: AiState, task: Task, found: ai.WebhookSent) -> bool:
    """Fold what came of a webhook. False when it changes nothing."""
    if task.webhook is not Webhook.WANTED or not task.status.final:
        return False
    task.webhook = Webhook.DELIVERED if found.delivered else Webhook.GIVEN_UP
    state.totals["webhooks_delivered" if found.delivered else "webhooks_given_up"] += 1
    state.dirty[task.id] = state.shown[task.id] = None
    return True
