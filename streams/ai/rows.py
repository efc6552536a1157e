"""The rows of tasks that ClickHouse shows, built where their state is sealed."""

from __future__ import annotations

from typing import Any

import pyarrow as pa

from streams.ai.rules import AiRules
from streams.ai.task import Task
from streams.ai.telling import figures_of
from topics import rows as schemas
from topics.ai import Kind, Status
from topics.headers import header

Row = dict[str, Any]


def task_row(task: Task, rules: AiRules) -> Row:
    """One task's whole state."""
    submit, figures = task.submit, figures_of(task, rules)
    done = task.status is Status.COMPLETED
    return {
        "task_id": task.id,
        "version": task.version,
        "user": submit.user,
        "task_type": submit.task_type,
        "template": task.origin.template,
        "language": submit.language,
        "model": task.origin.model,
        "status": task.status.value,
        "error_type": task.error_type,
        "error": task.error,
        "question": submit.question,
        "result": task.result or "",
        "reasoning": task.said(Kind.REASONING) if done else "",
        "segments": task.segments,
        "batch": task.batch,
        "attempts": figures.attempts,
        "calls": figures.calls,
        "retries": figures.retries,
        "lost_calls": figures.lost_calls,
        "prompt_tokens": figures.prompt_tokens,
        "completion_tokens": figures.completion_tokens,
        "cost_micros": figures.cost_micros,
        "submitted_ms": submit.submitted_ms,
        "accepted_ms": task.accepted_ms,
        "started_ms": task.started_ms or None,
        "finished_ms": task.finished_ms or None,
        "updated_ms": task.updated_ms,
        "webhook": task.webhook.name.lower(),
        "producer": (header(task.headers, "producer") or b"").decode("utf-8", "replace")[:128],
        "processed_by": "gateway" if task.gateway else "worker",
        "source_partition": rules.partition,
        "source_offset": task.origin.offset,
    }


def table(rows: dict[str, Row]) -> Any:
    """An Arrow table of rows."""
    return pa.Table.from_pylist(list(rows.values()), schemas.AI_TASKS)
