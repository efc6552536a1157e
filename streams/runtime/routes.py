"""What the owner of a partition answers about a key of it: the parts that the streams' routes share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
from aiohttp import web

from streams.runtime.fold import Fold
from streams.runtime.worker import StreamWorker
from topics.ids import valid_id
from topics.partitioning import partition_of


class OwnedKeys:
    """The keys whose partitions one worker owns, of `partitions()` in all; `name` is that of an id in a route's path."""

    def __init__(self, worker: StreamWorker, partitions: Callable[[], int], name: str) -> None:
        self._worker = worker
        self._partitions = partitions
        self._name = name

    def of(self, request: web.Request) -> tuple[str, int, Fold]:
        """The id that is asked for, its partition and fold.

        Raises HTTP 400 for what is no id, 421 when another worker owns its partition, 503 while that is being restored.
        """
        asked = request.match_info[self._name]
        if not valid_id(asked):
            raise refused(web.HTTPBadRequest, f"this is no {self._name.replace('_', ' ')}")
        partition = partition_of(asked.encode(), self._partitions())
        runner = self._worker.runners.get(partition)
        if runner is None:
            raise refused(web.HTTPMisdirectedRequest, f"partition {partition} is not owned by this worker")
        if not runner.ready.is_set():
            raise refused(web.HTTPServiceUnavailable, f"partition {partition} is being restored")
        return asked, partition, runner.fold


def answer(document: dict[str, Any], status: int = 200) -> web.Response:
    """A JSON document."""
    return web.Response(body=msgspec.json.encode(document), status=status, content_type="application/json")


def refused(kind: type[web.HTTPError], error: str) -> web.HTTPError:
    """An error to raise, which says why in JSON."""
    return kind(text=msgspec.json.encode({"error": error}).decode(), content_type="application/json")
