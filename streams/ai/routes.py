"""What the owners of partitions answer about their tasks: state, events, lists, and the figures of the queue."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any

from aiohttp import web

from streams.ai.fold import AiFold
from streams.ai.letting_go import LetGoTexts, Texts, TextsAway
from streams.ai.task import Task
from streams.runtime.routes import OwnedFolds, after_of, answer, refused
from streams.runtime.worker import StreamWorker
from topics.ai import Status
from topics.ids import valid_id

#: Tasks of one page.
PAGE_MAX = 200
MINUTE_MS = 60_000


class AiRoutes:
    """`GET /ai/tasks/{task_id}`, `/ai/tasks/{task_id}/events`, `/ai/tasks` and `/ai/queue` of one worker.

    One task: 404: it is not known to its owner, which has `applied` all below that offset; 421: another worker owns its
    partition; 503: the partition is being restored, or what the task has let go of cannot be read now. `/events?after=ID`
    gives what was told of it after that event, as the events' JSON in their order; without an answer that was let go of.
    `/ai/tasks?user=&status=&before=&limit=` lists the tasks of all partitions that are owned here, newest first, below a
    cursor `{accepted_ms}-{task_id}`; `/ai/queue` gives figures, a partition each.
    """

    def __init__(self, worker: StreamWorker, texts: LetGoTexts) -> None:
        self._texts = texts
        self._folds = OwnedFolds(worker, "task_id", AiFold)

    def all(self) -> Sequence[web.RouteDef]:
        """The routes."""
        return [
            web.get("/ai/tasks", self._list),
            web.get("/ai/tasks/{task_id}", self._state),
            web.get("/ai/tasks/{task_id}/events", self._events),
            web.get("/ai/queue", self._queue),
        ]

    async def _state(self, request: web.Request) -> web.Response:
        task_id, partition, fold = self._folds.of(request)
        place = {"partition": partition, "applied": fold.applied}
        task = fold.task(task_id)
        if task is None:
            return answer({"task_id": task_id, "status": "unknown", **place}, 404)
        described, submit = fold.described(task), fold.submitted(task)
        if task.let_go:
            texts = await self._let_go(task_id)
            submit["question"] = texts.question
            described["result"] = texts.result if task.status is Status.COMPLETED else None
        return answer({**described, "submit": submit, **place})

    async def _let_go(self, task_id: str) -> Texts:
        try:
            return await self._texts.texts(task_id)
        except TextsAway as error:
            raise refused(web.HTTPServiceUnavailable, str(error)) from None

    async def _events(self, request: web.Request) -> web.Response:
        task_id, partition, fold = self._folds.of(request)
        after = after_of(request)
        place = {"partition": partition, "applied": fold.applied}
        task = fold.task(task_id)
        if task is None:
            return answer({"task_id": task_id, "status": "unknown", **place}, 404)
        return answer({"task_id": task_id, "status": task.status, "events": fold.events(task, after), **place})

    async def _list(self, request: web.Request) -> web.Response:
        query = request.query
        try:
            limit = min(PAGE_MAX, max(1, int(query.get("limit", "50"))))
            wanted = Status(query["status"]) if query.get("status") else None
            before = _cursor(query["before"]) if query.get("before") else None
        except ValueError as error:
            raise refused(web.HTTPBadRequest, str(error)) from None
        folds = list(self._folds.all())
        found: list[tuple[int, str, dict[str, Any]]] = []
        for _, fold in folds:
            tasks = _matching(fold.newest(query.get("user") or None), wanted, before)
            found += [(task.accepted_ms, task.id, fold.described(task)) for task in islice(tasks, limit)]
        found.sort(key=lambda item: item[:2], reverse=True)
        page = [described for *_, described in found[:limit]]
        return answer({"tasks": page, "partitions": [partition for partition, _ in folds]})

    async def _queue(self, request: web.Request) -> web.Response:
        return answer({"partitions": [queue_figures(partition, fold) for partition, fold in self._folds.all()]})


def queue_figures(partition: int, fold: AiFold) -> dict[str, Any]:
    """A partition's queue: its depth and pace, and how its last tasks ended. `durations_ms` are of the last completed
    ones, from their acceptance, so that whoever asks several owners can merge them."""
    state = fold.state
    recent = list(fold.recent())
    in_minute = sum(1 for task in recent if task.finished_ms > state.clock_ms - MINUTE_MS)
    totals = state.totals
    prefix = "error_"
    return {
        "partition": partition,
        "clock_ms": state.clock_ms,
        "pending": sum(1 for task in fold.unfinished() if task.status is Status.PENDING),
        "processing": sum(1 for task in fold.unfinished() if task.status is Status.PROCESSING),
        "oldest_pending_ms": min(
            (task.accepted_ms for task in fold.unfinished() if task.status is Status.PENDING), default=None
        ),
        "finished_last_minute": in_minute,
        "submitted": totals["accepted"],
        **{status.value: totals[status.value] for status in Status if status.final},
        "calls": totals["calls"],
        "retries": totals["retries"],
        "lost_calls": totals["lost_calls"],
        "dead_letters": totals["dead"],
        "batches": state.batches,
        "errors": {name.removeprefix(prefix): n for name, n in totals.items() if name.startswith(prefix)},
        "durations_ms": [task.finished_ms - task.accepted_ms for task in recent if task.status is Status.COMPLETED],
        "models": {
            model: {"running": line.running, "waiting": line.waiting, "mean_call_ms": line.mean_ms}
            for model, line in state.lines.items()
        },
        "recent_statuses": Counter(task.status.value for task in recent),
    }


def _matching(tasks: Iterator[Task], status: Status | None, before: tuple[int, str] | None) -> Iterator[Task]:
    for task in tasks:
        if (status is None or task.status is status) and (before is None or (task.accepted_ms, task.id) < before):
            yield task


def _cursor(text: str) -> tuple[int, str]:
    accepted_ms, _, task_id = text.partition("-")
    if not accepted_ms.isdecimal() or not valid_id(task_id):
        raise ValueError(f"{text[:160]!r} is no cursor")
    return int(accepted_ms), task_id
