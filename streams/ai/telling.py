"""A task's events: told once as they happen, and told again, the same, to a reader that resumes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec

from streams.ai.rules import AiRules
from streams.ai.task import Mark, Task, What
from streams.ai.text import Piece
from topics.ai_events import (
    MAX_RESULT_BYTES,
    AttemptDiscarded,
    AttemptStarted,
    Figures,
    SegmentCompleted,
    TaskAccepted,
    TaskCancelled,
    TaskCompleted,
    TaskEvent,
    TaskFailed,
    TextWritten,
)
from topics.rows import VERSION_OFFSET_BITS


def figures_of(task: Task, rules: AiRules) -> Figures:
    """What a task has come to so far."""
    prompt = sum(call.prompt_tokens for call in task.calls) + task.extra.prompt_tokens
    completion = sum(call.completion_tokens for call in task.calls) + task.extra.completion_tokens
    return Figures(
        attempts=task.begun + task.extra.attempts,
        calls=sum(call.attempt for call in task.calls) + task.extra.calls,
        retries=sum(call.retries for call in task.calls) + task.extra.retries,
        lost_calls=sum(call.lost for call in task.calls),
        prompt_tokens=prompt,
        completion_tokens=completion,
        cost_micros=rules.cost_micros(task.origin.model, prompt, completion),
    )


def event_of(task: Task, mark: Mark, rules: AiRules) -> TaskEvent:
    """The event of a mark. That of an end is of the task as it ended."""
    where = _where(task, rules.partition, mark.version, mark.number, mark.at_ms)
    about: dict[str, Any] = {**where, "segment": task.segment_of(mark.call), "attempt": mark.attempt}
    match mark.what:
        case What.ACCEPTED:
            return TaskAccepted(
                **where,
                task_type=task.submit.task_type,
                language=task.submit.language,
                model=task.origin.model,
                segments=task.segments,
                submitted_ms=task.submit.submitted_ms,
            )
        case What.STARTED:
            return AttemptStarted(**about, lease_ms=mark.value)
        case What.DISCARDED:
            return AttemptDiscarded(**about, error_type=mark.label, retry_after_ms=mark.value)
        case What.SEGMENT:
            return SegmentCompleted(**where, segment=mark.call, segments=task.segments)
        case What.COMPLETED:
            result = task.result
            short = result is not None and len(msgspec.json.encode(result)) <= MAX_RESULT_BYTES
            return TaskCompleted(**where, result=result if short else None, figures=figures_of(task, rules))
        case What.FAILED:
            return TaskFailed(**where, error_type=task.error_type, error=task.error, figures=figures_of(task, rules))
        case What.CANCELLED:
            return TaskCancelled(**where, figures=figures_of(task, rules))


def written(task: Task, partition: int, call: int, block: int, piece: Piece) -> TextWritten:
    """The event of a piece of text."""
    return TextWritten(
        **_where(task, partition, piece.version, piece.number, piece.at_ms),
        segment=task.segment_of(call),
        attempt=task.calls[call].attempt,
        block=block,
        kind=piece.kind,
        text=piece.text,
    )


def history(task: Task, rules: AiRules) -> Iterator[TaskEvent]:
    """All events of a task in their order, but for the text of attempts that came to nothing."""
    told: list[TaskEvent] = [event_of(task, mark, rules) for mark in task.marks]
    for call, text in enumerate(task.texts):
        told += [written(task, rules.partition, call, block, piece) for block, piece in enumerate(text.pieces())]
    return iter(sorted(told, key=lambda event: event.id))


def _where(task: Task, partition: int, version: int, number: int, at_ms: int) -> dict[str, Any]:
    return {
        "task_id": task.id,
        "user": task.user,
        "at_ms": at_ms,
        "source_partition": partition,
        "epoch": version >> VERSION_OFFSET_BITS,
        "source_offset": version & ((1 << VERSION_OFFSET_BITS) - 1),
        "number": number,
    }
