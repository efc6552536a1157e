"""A progress row promises that the rollups below it are written; it must also hold for the round that ends a process."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from streams.runtime.faults import Faults
from streams.runtime.materialiser import Materialiser
from streams.runtime.metrics import PartitionMetrics, StreamMetrics
from streams.traffic import fold as traffic_fold
from streams.traffic.core import TrafficRules
from tests.traffic import DAY_MS, Process, Record, World, event


class _Store:
    """The newest rollups by path; the first insert waits until `open` is set. `promises` pairs each progress row's offset
    with the requests that the rollups held when it was written."""

    def __init__(self) -> None:
        self.requests: dict[str, int] = {}
        self.promises: list[tuple[int, int]] = []
        self.asked, self.open = asyncio.Event(), asyncio.Event()
        self.available = True

    async def insert(self, table: str, data: Any) -> None:
        if not self.asked.is_set():
            self.asked.set()
            await self.open.wait()
        for row in data.to_pylist():
            if table == "path_stats_hourly_rows":
                self.requests[row["path"]] = row["requests"]
            else:
                self.promises.append((row["offset"], sum(self.requests.values())))


class _Runner:
    """A partition as the materialiser sees it, around a real fold."""

    def __init__(self, process: Process, metrics: PartitionMetrics) -> None:
        self.partition, self.epoch, self.log_end = 0, 1, 0
        self.process, self.fold, self.metrics = process, process.fold, metrics
        self.ready = asyncio.Event()
        self.ready.set()

    @property
    def flushed(self) -> int:
        return self.process.world.cursor

    @property
    def expected(self) -> int:
        return self.process.position

    def written(self) -> None:
        """There is room again; this one never waits for any."""


class _Worker:
    def __init__(self, process: Process) -> None:
        self.stream, self.source, self.sink_available = "traffic", "traffic.events.v1", True
        self.metrics = StreamMetrics("traffic", CollectorRegistry())
        self.runners = {0: _Runner(process, self.metrics.partition(0))}

    async def written_ends(self, partitions: list[int]) -> dict[int, int]:
        return {p: self.runners[p].expected for p in partitions}


def _flush(process: Process, count: int) -> None:
    begin = process.position
    records = [Record(i, DAY_MS, event(f"e{i}", path=f"/{i}")) for i in range(begin, begin + count)]
    process.read(records, begin + count)
    process.commit(process.seal())


def test_a_round_asked_for_while_one_is_under_way_promises_only_what_is_written(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(traffic_fold, "ROLLUP_KEYS", 2)

    async def scenario() -> None:
        process, store = Process(TrafficRules(partition=0, partitions=1), World()), _Store()
        worker: Any = _Worker(process)
        materialiser = Materialiser(worker, store, Faults(), 0.0, 1)
        _flush(process, 6)
        first = asyncio.create_task(materialiser.once())
        await store.asked.wait()
        _flush(process, 3)
        last = asyncio.create_task(materialiser.once())
        for _ in range(100):
            await asyncio.sleep(0)
        store.open.set()
        await asyncio.gather(first, last)
        assert max(store.promises)[0] == 9
        assert all(written >= offset for offset, written in store.promises), store.promises

    asyncio.run(asyncio.wait_for(scenario(), 10))
