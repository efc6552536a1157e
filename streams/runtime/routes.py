"""What the owner of a partition answers about a key of it: the parts that the streams' routes share."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Generic, TypeVar

import msgspec
from aiohttp import web

from streams.runtime.fold import Fold
from streams.runtime.worker import StreamWorker
from topics.event_ids import EventId, parse_event_id
from topics.ids import valid_id
from topics.partitioning import partition_of

F = TypeVar("F", bound=Fold)


class OwnedKeys:
    """The keys whose partitions one worker owns; `name` is that of an id in a route's path."""

    def __init__(self, worker: StreamWorker, name: str) -> None:
        self._worker = worker
        self._name = name

    def of(self, request: web.Request) -> tuple[str, int, Fold]:
        """The id that is asked for, its partition and fold.

        Raises HTTP 400 for what is no id, 421 when another worker owns its partition, 503 while that is being restored.
        """
        asked = request.match_info[self._name]
        if not valid_id(asked):
            raise refused(web.HTTPBadRequest, f"this is no {self._name.replace('_', ' ')}")
        partition = partition_of(asked.encode(), self._worker.partitions)
        runner = self._worker.runners.get(partition)
        if runner is None:
            raise refused(web.HTTPMisdirectedRequest, f"partition {partition} is not owned by this worker")
        if not runner.ready.is_set():
            raise refused(web.HTTPServiceUnavailable, f"partition {partition} is being restored")
        return asked, partition, runner.fold


class OwnedFolds(Generic[F]):
    """As `OwnedKeys`, of a stream whose folds are of one kind; and all of them that are restored."""

    def __init__(self, worker: StreamWorker, name: str, kind: type[F]) -> None:
        self._worker = worker
        self._keys = OwnedKeys(worker, name)
        self._kind = kind

    def of(self, request: web.Request) -> tuple[str, int, F]:
        """See `OwnedKeys`."""
        asked, partition, fold = self._keys.of(request)
        assert isinstance(fold, self._kind)
        return asked, partition, fold

    def all(self) -> Iterator[tuple[int, F]]:
        """Partitions and their folds."""
        for partition, runner in sorted(self._worker.runners.items()):
            if runner.ready.is_set():
                assert isinstance(runner.fold, self._kind)
                yield partition, runner.fold


def after_of(request: web.Request) -> EventId | None:
    """The event after which is asked for more, by `?after=`. Raises HTTP 400."""
    asked = request.query.get("after")
    after = parse_event_id(asked) if asked else None
    if asked and after is None:
        raise refused(web.HTTPBadRequest, f"{asked[:60]!r} is no event id")
    return after


def answer(document: dict[str, Any], status: int = 200) -> web.Response:
    """A JSON document."""
    return web.Response(body=msgspec.json.encode(document), status=status, content_type="application/json")


def refused(kind: type[web.HTTPError], error: str) -> web.HTTPError:
    """An error to raise, which says why in JSON."""
    return kind(text=msgspec.json.encode({"error": error}).decode(), content_type="application/json")
