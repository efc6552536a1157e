"""What the owners of partitions answer about their jobs: state, events, lists, and the figures of the queue."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
from aiohttp import web

from streams.files.fold import FilesFold
from streams.runtime.routes import OwnedFolds, after_of, answer, refused
from streams.runtime.worker import StreamWorker
from topics.files import Status

#: Jobs of one page.
PAGE_MAX = 200


class FilesRoutes:
    """`GET /files/jobs/{job_id}`, `/files/jobs/{job_id}/events`, `/files/jobs` and `/files/queue` of one worker.

    One job: 404: it is not known to its owner, which has `applied` all below that offset; 421: another worker owns its
    partition; 503: the partition is being restored. Its state is that of `GET /api/convert/{job_id}` without a link, with
    `submit` as it came. `/events?after=ID` gives what was told of it after that event, as the events' JSON in their order.
    `/files/jobs?user=&status=&limit=` lists the jobs of all partitions that are owned here, newest first; `/files/queue`
    gives figures, a partition each.
    """

    def __init__(self, worker: StreamWorker) -> None:
        self._folds = OwnedFolds(worker, "job_id", FilesFold)

    def all(self) -> Sequence[web.RouteDef]:
        """The routes."""
        return [
            web.get("/files/jobs", self._list),
            web.get("/files/jobs/{job_id}", self._state),
            web.get("/files/jobs/{job_id}/events", self._events),
            web.get("/files/queue", self._queue),
        ]

    async def _state(self, request: web.Request) -> web.Response:
        job_id, partition, fold = self._folds.of(request)
        place = {"partition": partition, "applied": fold.applied}
        job = fold.job(job_id)
        if job is None:
            return answer({"job_id": job_id, "status": "unknown", **place}, 404)
        return answer({**fold.described(job), "submit": msgspec.to_builtins(job.submit), **place})

    async def _events(self, request: web.Request) -> web.Response:
        job_id, partition, fold = self._folds.of(request)
        after = after_of(request)
        place = {"partition": partition, "applied": fold.applied}
        job = fold.job(job_id)
        if job is None:
            return answer({"job_id": job_id, "status": "unknown", **place}, 404)
        return answer({"job_id": job_id, "status": job.course.status, "events": fold.events(job, after), **place})

    async def _list(self, request: web.Request) -> web.Response:
        query = request.query
        try:
            limit = min(PAGE_MAX, max(1, int(query.get("limit", "50"))))
            status = Status(query["status"]) if query.get("status") else None
        except ValueError as error:
            raise refused(web.HTTPBadRequest, str(error)) from None
        folds = list(self._folds.all())
        found: list[tuple[int, str, dict[str, Any]]] = []
        for _, fold in folds:
            jobs = fold.newest(query.get("user") or None, status, limit)
            found += [(job.course.accepted_ms, job.id, fold.described(job)) for job in jobs]
        found.sort(key=lambda item: item[:2], reverse=True)
        page = [described for *_, described in found[:limit]]
        return answer({"jobs": page, "partitions": [partition for partition, _ in folds]})

    async def _queue(self, request: web.Request) -> web.Response:
        return answer({"partitions": [queue_figures(partition, fold) for partition, fold in self._folds.all()]})


def queue_figures(partition: int, fold: FilesFold) -> dict[str, Any]:
    """A partition's queue and totals, as its metrics have them."""
    state = fold.state
    return {
        "partition": partition,
        "clock_ms": state.clock_ms,
        "slots": state.rules.slots,
        "running": state.running.total(),
        "waiting": len(state.first) + sum(len(own) for own in state.waiting.values()),
        "open": len(state.open),
        "to_sweep": sum(not job.course.swept for job in state.jobs.values()),
        "totals": dict(state.totals),
    }
