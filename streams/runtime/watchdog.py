"""Measures how far each partition is behind, and stops the worker when one stands still although it could go on, or when
its log was changed underneath it.

Committed position against the log's end is the only thing it trusts. It is patient while the broker or the sink is away,
since then nothing can move, and while a partition is still restoring. A store that answers slowly gets more time: an
insert may wait for another one, and a worker that starts again would wait for both once more.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING

import structlog
from aiokafka.errors import KafkaError
from confluent_kafka import KafkaException

from streams.runtime.takeover import LogLost

if TYPE_CHECKING:
    from streams.runtime.partition import PartitionRunner
    from streams.runtime.worker import StreamWorker

log = structlog.get_logger(__name__)

#: So many times the patience for a partition that waits for a store's answer.
_FOR_STORES = 4


class StandsStill(RuntimeError):
    """A partition made no progress although there is something to read."""


class Watchdog:
    """Looks at every partition of a worker every few seconds."""

    def __init__(self, worker: StreamWorker, patience_s: float, every_s: float = 2.0) -> None:
        self._worker = worker
        self._patience_s = patience_s
        self._every_s = every_s
        self._moved: dict[int, tuple[int, float]] = {}
        self._measured: set[int] = set()

    async def run(self) -> None:
        """Work until cancelled."""
        while True:
            await asyncio.sleep(self._every_s)
            # Here and not where rows are written: that waits while the sink is away, which is when someone looks.
            self._worker.metrics.sink(self._worker.sink_available)
            try:
                await self._look()
            except (KafkaError, KafkaException, TimeoutError) as error:
                self._moved.clear()
                log.info("the watchdog waits for Kafka", error=repr(error))

    async def _look(self) -> None:
        runners = {p: r for p, r in self._worker.runners.items() if r.ready.is_set()}
        self._forget(self._measured - runners.keys())
        if not runners:
            return
        # What is committed while the ends are asked for may pass an answer that another broker's kept waiting.
        flushed = {partition: runner.flushed for partition, runner in runners.items()}
        identity = await self._worker.identity()
        starts = await self._worker.log_starts(list(runners))
        ends = await self._worker.log_ends(list(runners))
        self._measure(runners, ends)
        for partition, runner in runners.items():
            where = f"{self._worker.source}[{partition}]"
            if runner.meta is not None and runner.meta.topic_id != identity:
                self._worker.fail("watchdog", LogLost(f"{where} was made anew; starting again on the new topic"))
            if starts[partition] > runner.expected:
                self._worker.fail(
                    "watchdog", LogLost(f"{where} now starts at {starts[partition]}, the fold is at {runner.expected}")
                )
            if ends[partition] < flushed[partition]:
                self._worker.fail(
                    "watchdog", LogLost(f"{where} ends at {ends[partition]}, before the commit {flushed[partition]}")
                )
            self._judge(partition, runner, ends[partition])

    def _measure(self, runners: Mapping[int, PartitionRunner], ends: Mapping[int, int]) -> None:
        for partition, runner in runners.items():
            runner.log_end = end = ends[partition]
            committed = runner.meta.cursor if runner.meta else runner.flushed
            runner.metrics.lags(max(0, end - runner.expected), max(0, end - committed))
            runner.metrics.figures(runner.fold.figures())
        self._measured |= runners.keys()

    def _forget(self, partitions: set[int]) -> None:
        for partition in partitions:
            self._worker.metrics.forget(partition)
        self._measured -= partitions

    def _judge(self, partition: int, runner: PartitionRunner, end: int) -> None:
        now, flushed = time.monotonic(), runner.flushed
        last, since = self._moved.get(partition, (-1, now))
        if flushed != last or flushed >= end or not self._worker.sink_available:
            self._moved[partition] = (flushed, now)
        elif now - since > self._patience_s * (_FOR_STORES if runner.storing else 1):
            self._worker.fail(
                "watchdog",
                StandsStill(
                    f"{self._worker.source}[{partition}] stands at {flushed} of {end} for {now - since:.0f} s: "
                    f"{runner.doing}"
                ),
            )
