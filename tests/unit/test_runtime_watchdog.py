"""What the watchdog takes for standing still: not a store that is away, and not soon one that is slow."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from streams.runtime.changelog import Meta
from streams.runtime.metrics import PartitionMetrics, StreamMetrics
from streams.runtime.partition import WRITING_ROWS
from streams.runtime.takeover import LogLost
from streams.runtime.watchdog import StandsStill, Watchdog

PATIENCE_S = 0.1


class _Fold:
    def figures(self) -> dict[str, float]:
        return {}


@dataclass
class _Runner:
    storing: bool
    metrics: PartitionMetrics
    fold: _Fold = field(default_factory=_Fold)
    log_end: int = 0
    flushed: int = 5
    expected: int = 10
    doing: str = WRITING_ROWS
    meta: Meta = field(default_factory=lambda: Meta("id", 1, 1, 1, 5))
    ready: asyncio.Event = field(default_factory=asyncio.Event)


class _Worker:
    """A worker of one partition that stands at 5 of 10."""

    def __init__(self, storing: bool = False, sink_available: bool = True) -> None:
        self.source, self.sink_available = "source", sink_available
        self.metrics = StreamMetrics("stream", CollectorRegistry())
        self.runners = {0: _Runner(storing, self.metrics.partition(0))}
        self.runners[0].ready.set()
        self.failed: asyncio.Future[BaseException] = asyncio.get_running_loop().create_future()

    async def identity(self) -> str:
        return "id"

    async def log_starts(self, partitions: list[int]) -> dict[int, int]:
        return {0: 0}

    async def log_ends(self, partitions: list[int]) -> dict[int, int]:
        return {0: 10}

    def fail(self, where: str, error: BaseException) -> None:
        if not self.failed.done():
            self.failed.set_result(error)


async def _seconds_to_failure(worker: Any, deadline_s: float) -> float:
    """How long until the watchdog stops the worker. Raises TimeoutError."""
    started = time.monotonic()
    watching = asyncio.create_task(Watchdog(worker, PATIENCE_S, every_s=0.01).run())
    try:
        async with asyncio.timeout(deadline_s):
            assert isinstance(await worker.failed, StandsStill)
    finally:
        watching.cancel()
    return time.monotonic() - started


async def test_a_partition_that_could_go_on_is_given_its_patience() -> None:
    assert await _seconds_to_failure(_Worker(), deadline_s=5) >= PATIENCE_S


async def test_a_slow_answer_of_a_store_gets_more_time_but_not_for_ever() -> None:
    assert await _seconds_to_failure(_Worker(storing=True), deadline_s=5) >= 4 * PATIENCE_S


async def test_a_log_that_ends_before_what_was_committed_is_lost() -> None:
    worker = _Worker()
    worker.runners[0].flushed = worker.runners[0].expected = 11
    with pytest.raises(LogLost, match="ends at 10, before the commit 11"):
        await _look(worker)


async def test_what_is_committed_while_the_ends_are_asked_for_is_no_loss() -> None:
    class Slow(_Worker):
        async def log_ends(self, partitions: list[int]) -> dict[int, int]:
            ends = await super().log_ends(partitions)
            self.runners[0].flushed = self.runners[0].expected = 20  # more came and was folded meanwhile
            return ends

    await _look(Slow())


async def test_a_broker_that_hangs_is_waited_for() -> None:
    class Hanging(_Worker):
        async def identity(self) -> str:
            raise TimeoutError

    watching = asyncio.create_task(Watchdog(Hanging(), PATIENCE_S, every_s=0.01).run())  # type: ignore[arg-type]
    await asyncio.sleep(0.05)
    assert not watching.done()
    watching.cancel()


async def _look(worker: Any) -> None:
    """One look of a watchdog; raises what it fails the worker with."""
    await Watchdog(worker, PATIENCE_S)._look()
    if worker.failed.done():
        raise worker.failed.result()


async def test_a_store_that_is_away_is_waited_for() -> None:
    with pytest.raises(TimeoutError):
        await _seconds_to_failure(_Worker(storing=True, sink_available=False), deadline_s=8 * PATIENCE_S)
