"""A submitted question becomes a task, whole or in segments; what may not be asked fails at once."""

from __future__ import annotations

import msgspec

from streams.ai.ending import fail
from streams.ai.granting import queue
from streams.ai.letters import mark
from streams.ai.letting_go import same_task
from streams.ai.rules import AiRules
from streams.ai.state import AiState
from streams.ai.task import Call, Origin, Task, Webhook, What
from streams.runtime.burying import bury
from topics import ai
from topics.records import Record


def take_submit(state: AiState, record: Record, submit: ai.Submit) -> None:
    """A submitted task: a new one, a repeat, or a conflict with one of the same id."""
    known = state.tasks.get(submit.task_id)
    if known is None:
        accept(state, record, submit, waits=True)
    elif same_task(known, submit):
        state.totals["duplicate"] += 1
    else:
        bury(state, record, "conflict", f"task {known.id} was submitted with other content before")


def accept(state: AiState, record: Record, submit: ai.Submit, waits: bool) -> Task:
    """Remember a task; unless it is over already it `waits` for its calls."""
    rules = state.rules
    kind = rules.task_types.get(submit.task_type)
    model = submit.model or (kind.model if kind else "")
    parts = state.split(submit.question, rules.segment_chars, rules.segment_overlap_chars) if waits else []
    parts = parts if len(parts) > 1 else []
    value = record.value or b""
    if not waits:
        value = msgspec.json.encode(submit)
    template = kind.template if kind else ""
    origin = Origin(value, list(record.headers), record.offset, record.append_ms, model, template, len(parts))
    calls = [Call() for _ in range(len(parts) + 1)]
    task = Task(origin, submit, parts, state.event_version, state.clock_ms, calls)
    task.webhook = Webhook.WANTED if submit.webhook_url else Webhook.NONE
    state.tasks[task.id] = task
    state.by_user[task.user][task.id] = None
    state.open[task.id] = state.new[task.id] = None
    state.totals["accepted"] += 1
    mark(state, task, What.ACCEPTED)
    refusal = _refusal(rules, submit) if waits else None
    if refusal is not None:
        fail(state, task, *refusal)
    elif waits:
        queue(state, task)
    return task


def _refusal(rules: AiRules, submit: ai.Submit) -> tuple[str, str] | None:
    if submit.task_type not in rules.task_types:
        return "unknown_type", f"task type {submit.task_type} is none of {', '.join(rules.task_types)}"
    if submit.model is not None and submit.model not in rules.models:
        return "model_not_allowed", f"model {submit.model} is none of {', '.join(rules.models)}"
    return None
