"""The end of a task that a gateway has processed itself while Kafka was away."""

from __future__ import annotations

from streams.ai.ending import fail, finish
from streams.ai.granting import leave
from streams.ai.state import AiState
from streams.ai.task import CallState, Task
from streams.ai.writing import discard, write
from topics import ai
from topics.ai import Kind, Status
from topics.ai_events import Figures


def end_elsewhere(state: AiState, task: Task, found: ai.Outcome) -> None:
    """A gateway has processed the task itself."""
    task.gateway = True
    # Its last attempt counts as one of ours when it is written down as such.
    more = found.attempts - (found.status is Status.COMPLETED)
    task.extra = Figures(
        attempts=max(0, more),
        calls=max(0, more),
        retries=max(0, found.attempts - 1),
        prompt_tokens=found.usage.prompt_tokens,
        completion_tokens=found.usage.completion_tokens,
    )
    if task.started_ms == 0:
        task.started_ms = max(0, state.clock_ms - max(0, found.finished_ms - found.started_ms))
    if found.status is Status.FAILED:
        fail(state, task, found.error_type or "failed", found.error)
        return
    if task.texts[task.last].chunks:
        discard(state, task, task.last, "answered_elsewhere", 0)
    call = task.calls[task.last]
    if call.state is CallState.WAITING:
        leave(state, task, task.last)
        call.state = CallState.HELD
    call.attempt, call.blocks = call.attempt + 1, 0
    for kind, text in ((Kind.REASONING, found.reasoning), (Kind.ANSWER, found.result)):
        for at in range(0, len(text), ai.MAX_BLOCK_BYTES // 4):
            write(state, task, task.last, kind, text[at : at + ai.MAX_BLOCK_BYTES // 4])
    finish(state, task, Status.COMPLETED)
