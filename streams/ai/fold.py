"""The AI core in the shape that the runtime asks for, and what a task looks like from outside."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from itertools import islice
from typing import Any

import msgspec

from streams.ai import core, restoring
from streams.ai.clock import idle_wanted
from streams.ai.effects import CallModel, Effect
from streams.ai.model_port import Asked, Part
from streams.ai.rows import table
from streams.ai.rules import AiRules
from streams.ai.state import AiState, Split
from streams.ai.task import Task
from streams.ai.telling import figures_of, history
from streams.runtime.latest import Core, LatestFold
from topics.ai import Idle, Kind, Status, encode
from topics.ai_events import TaskEvent
from topics.event_ids import EventId
from topics.records import Emit
from topics.rows import AI_TASKS_ROWS

#: How many of the last finished tasks the figures look at.
RECENT = 1_000
#: Of a merge's question so many characters are repeated to the model.
MERGE_QUESTION_CHARS = 2_000


CORE: Core[AiState, restoring.Restoring] = Core(
    core.step, core.seal, restoring.Restoring, restoring.restored, restoring.unmaterialised, AI_TASKS_ROWS, table
)


class AiFold(LatestFold[AiState, restoring.Restoring]):
    """Implements `streams.runtime.fold.Fold` over `core`."""

    def __init__(self, rules: AiRules, split: Split) -> None:
        super().__init__(AiState(rules, split), CORE)

    def idle(self) -> Emit | None:
        """See `Fold`: while a task is open, the time decides about it."""
        if not idle_wanted(self.state):
            return None
        encoded = encode(Idle())
        return Emit(self.state.rules.source, None, encoded.value, encoded.headers, self.state.rules.partition)

    @property
    def open_rows(self) -> int:
        """See `Fold`. A record of many KiB counts as many."""
        kib = sum(len(emit.value or b"") for emit in self.state.emits) >> 10
        return len(self.state.emits) + len(self.state.dead) + len(self.state.dirty) + kib

    def figures(self) -> Mapping[str, float]:
        """See `Fold`. Outcomes and clock are of what is committed."""
        found = self.state.lines
        states = Counter(task.status for task in self.unfinished())
        return {
            **self.outcomes(),
            "tasks_pending": float(states[Status.PENDING]),
            "tasks_processing": float(states[Status.PROCESSING]),
            "tasks_remembered": float(len(self.state.tasks)),
            "texts_kept_bytes": float(self.state.kept_bytes),
            "calls_running": float(sum(line.running for line in found.values())),
            "calls_waiting": float(sum(line.waiting for line in found.values())),
        }

    # -- what others ask -----------------------------------------------------------------------------------------

    def unfinished(self) -> Iterator[Task]:
        """Tasks that are not over."""
        return (self.state.tasks[task_id] for task_id in self.state.open)

    def recent(self) -> Iterator[Task]:
        """The tasks that ended last, newest first."""
        return (self.state.tasks[task_id] for task_id in islice(reversed(self.state.finished), RECENT))

    def task(self, task_id: str) -> Task | None:
        """A task as it is folded, committed or not."""
        return self.state.tasks.get(task_id)

    def newest(self, user: str | None) -> Iterator[Task]:
        """All tasks, or a user's, newest first."""
        ids = self.state.tasks if user is None else self.state.by_user.get(user, {})
        return (self.state.tasks[task_id] for task_id in reversed(ids))

    def events(self, task: Task, after: EventId | None) -> list[TaskEvent]:
        """What was told of a task after an event, as far as it is committed."""
        end = EventId(self._position.epoch, self._position.offset, 0)
        told = history(task, self.state.rules)
        return [event for event in told if (after is None or event.id > after) and event.id < end]

    def described(self, task: Task) -> dict[str, Any]:
        """A task's state for those who ask the owner."""
        submit, figures = task.submit, figures_of(task, self.state.rules)
        return {
            "task_id": task.id,
            "status": task.status,
            "user": submit.user,
            "task_type": submit.task_type,
            "language": submit.language,
            "model": task.origin.model,
            "result": task.result,
            "partial": None if task.status.final else task.said(Kind.ANSWER),
            "error": {"type": task.error_type, "message": task.error} if task.error_type else None,
            "attempts": figures.attempts,
            "retries": figures.retries,
            "lost_calls": figures.lost_calls,
            "calls": figures.calls,
            "segments": task.segments,
            "segments_done": sum(1 for _ in task.done_segments()),
            "batch": task.batch or None,
            "usage": {
                "prompt_tokens": figures.prompt_tokens,
                "completion_tokens": figures.completion_tokens,
                "total_tokens": figures.prompt_tokens + figures.completion_tokens,
                "cost": figures.cost_micros / 1_000_000,
            },
            "submitted_ms": submit.submitted_ms,
            "accepted_ms": task.accepted_ms,
            "started_ms": task.started_ms or None,
            "finished_ms": task.finished_ms or None,
            "updated_ms": task.updated_ms,
            "deadline_ms": task.deadline_ms or None,
            "lease_ms": max((task.calls[number].lease_ms for number in task.running()), default=None),
            "webhook": task.webhook.name.lower(),
        }

    def submitted(self, task: Task) -> dict[str, Any]:
        """What a task was submitted with, for a gateway that compares."""
        found: dict[str, Any] = msgspec.to_builtins(task.submit)
        return found

    def asked(self, effect: CallModel) -> Asked | None:
        """What a call is to be about; None when nobody wants it any more."""
        if not core.wanted(self.state, effect):
            return None
        task = self.state.tasks[effect.task_id]
        submit, parts = task.submit, task.parts
        if not parts:
            return _asked(task, Part.WHOLE, (submit.question,))
        if effect.call < task.last:
            return _asked(task, Part.SEGMENT, (parts[effect.call],), effect.call + 1)
        answers = tuple(text.of(Kind.ANSWER) for text in task.texts[:-1])
        return _asked(task, Part.MERGE, (submit.question[:MERGE_QUESTION_CHARS], *answers))

    def wanted(self, effect: Effect) -> bool:
        """Whether an effect is still to be done."""
        return core.wanted(self.state, effect)


def _asked(task: Task, part: Part, texts: tuple[str, ...], number: int = 1) -> Asked:
    submit = task.submit
    return Asked(
        task_type=submit.task_type, language=submit.language, part=part, texts=texts, number=number, of=task.segments
    )
