"""What comes of a call: blocks, an answer, or an error after which it is made again or the task fails."""

from __future__ import annotations

from streams.ai.deadlines import schedule
from streams.ai.ending import fail, finish
from streams.ai.granting import free, go_first
from streams.ai.letters import mark
from streams.ai.state import AiState
from streams.ai.task import Call, CallState, Task, What
from streams.ai.writing import discard, write
from topics import ai
from topics.ai import Status


def take_of_call(state: AiState, task: Task, found: ai.Block | ai.Answered | ai.CallFailed) -> bool:
    """Fold what came of a call. False when it changes nothing: another attempt is under way, or none."""
    if found.call >= len(task.calls):
        return False
    call = task.calls[found.call]
    if call.state is not CallState.RUNNING or (call.term, call.attempt) != (found.term, found.attempt):
        state.totals["late_answers"] += not isinstance(found, ai.Block)
        return False
    if isinstance(found, ai.Block):
        return _block(state, task, call, found)
    call.prompt_tokens += found.usage.prompt_tokens
    call.completion_tokens += found.usage.completion_tokens
    free(state, task, call, found.duration_ms)
    if isinstance(found, ai.CallFailed):
        call_failed(state, task, found.call, found.error_type, found.error, found.retry_after_ms)
    elif found.blocks != call.blocks:
        error = f"{call.blocks} of {found.blocks} blocks are in the log"
        call_failed(state, task, found.call, "incomplete", error, 0)
    else:
        _answered(state, task, found.call)
    return True


def _block(state: AiState, task: Task, call: Call, found: ai.Block) -> bool:
    if found.block != call.blocks:
        return False
    write(state, task, found.call, found.kind, found.text)
    return True


def _answered(state: AiState, task: Task, number: int) -> None:
    task.calls[number].state = CallState.DONE
    if number == task.last:
        finish(state, task, Status.COMPLETED)
        return
    mark(state, task, What.SEGMENT, number)
    if all(call.state is CallState.DONE for call in task.calls[:-1]):
        go_first(state, task, task.last)
    schedule(state, task)


def call_failed(
    state: AiState, task: Task, number: int, error_type: str, error: str, retry_after_ms: int | None
) -> None:
    """Another attempt after a pause, unless none makes sense or there were enough."""
    call = task.calls[number]
    if retry_after_ms is not None and state.clock_ms + retry_after_ms >= task.deadline_ms:
        error, retry_after_ms = f"{error} (and its retry would come after the deadline)", None
    if retry_after_ms is None or call.retries >= state.rules.retries_max:
        call.state = CallState.GIVEN_UP
        fail(state, task, error_type, error)
        return
    call.state, call.due_ms = CallState.PAUSED, state.clock_ms + max(1, retry_after_ms)
    call.retries += 1
    state.totals["retries"] += 1
    discard(state, task, number, error_type, retry_after_ms)
    schedule(state, task)
