"""Rollups after the fact: writes what committed state says to the sink, and how far that is.

Rows are versioned by position, so writing them late, twice, or by a worker that lost its partition changes nothing. What a
crash kept from being written is written by the next owner, whose restore marks it as changed.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import structlog
from aiokafka.errors import KafkaError

from streams.runtime.faults import Faults
from streams.runtime.fold import RowSink
from topics import rows as row_schemas

if TYPE_CHECKING:
    from streams.runtime.partition import PartitionRunner
    from streams.runtime.worker import StreamWorker

log = structlog.get_logger(__name__)


@dataclass(frozen=True)
class _Reached:
    """How far a partition's committed state was when a round began."""

    runner: PartitionRunner
    epoch: int
    offset: int
    figures: Mapping[str, float]


#: The longest pause between rounds of a worker under load, seconds.
LOADED_PAUSE_S = 2.0
#: How often such a pause looks whether the load is over, seconds.
LOOK_S = 0.05
#: A round does without progress rows when Kafka has not told the log's ends by then, seconds.
ASK_S = 3.0


class Materialiser:
    """Writes changed rollups of all partitions of a worker at most once an interval, then the progress they make."""

    def __init__(self, worker: StreamWorker, sink: RowSink, faults: Faults, interval_s: float, partitions: int) -> None:
        self._worker = worker
        self._sink = sink
        self._faults = faults
        self._interval_s = interval_s
        self._partitions = partitions
        self._round = asyncio.Lock()

    async def run(self) -> None:
        """Work until cancelled."""
        while True:
            started = time.monotonic()
            await self.once()
            busy_s = time.monotonic() - started
            rest_s = max(0.02, self._interval_s - busy_s)
            await asyncio.sleep(rest_s)
            await self._leave_room(min(2 * busy_s, LOADED_PAUSE_S) - rest_s)

    async def _leave_room(self, pause_s: float) -> None:
        """Under load a round writes each key once for many flushes; twice its own time apart, it leaves room to fold.

        While no batch waits to be folded, there is nothing to leave room for, and whoever asks is to see the newest.
        """
        for _ in range(round(pause_s / LOOK_S)):
            if not any(runner.behind for runner in self._worker.runners.values()):
                return
            await asyncio.sleep(LOOK_S)

    async def once(self) -> None:
        """Write what has changed since the last time, once a round that is under way has ended: the promise that ends
        a round holds for what the round itself began with."""
        async with self._round:
            await self._write()

    async def _write(self) -> None:
        runners = [r for r in self._worker.runners.values() if r.ready.is_set()]
        # Taken before the rollups are built: what commits meanwhile is the next round's to promise.
        reached = [_Reached(r, r.epoch, r.flushed, r.fold.figures()) for r in runners]
        await asyncio.gather(*(self._rollups(runner) for runner in runners))
        await self._progress(reached)

    async def _rollups(self, runner: PartitionRunner) -> None:
        while (done := runner.fold.materialise()) is not None:
            self._faults.reach("rollup.before")
            await asyncio.gather(*(self._sink.insert(table, rows) for table, rows in done.rows.items()))
            self._faults.reach("rollup.after")
            runner.fold.materialised(done)
            runner.written()
            await asyncio.sleep(0)

    async def _progress(self, reached: list[_Reached]) -> None:
        """After its rollups: a progress row promises that they are there."""
        if not reached:
            return
        checked_ms = int(time.time() * 1000)
        try:
            async with asyncio.timeout(ASK_S):
                # What a transaction holds that is still open was appended in its hour all the same.
                ends = await self._worker.written_ends([at.runner.partition for at in reached])
        except (KafkaError, TimeoutError) as error:
            log.info("no progress reported while Kafka is away", error=repr(error))
            return
        rows = [self._row(at, ends[at.runner.partition], checked_ms) for at in reached]
        await self._sink.insert("stream_progress_rows", pa.Table.from_pylist(rows, row_schemas.STREAM_PROGRESS))

    def _row(self, at: _Reached, end: int, checked_ms: int) -> dict[str, Any]:
        return {
            "stream": self._worker.stream,
            "topic": self._worker.source,
            "partition": at.runner.partition,
            "partitions": self._partitions,
            "epoch": at.epoch,
            "offset": at.offset,
            "end_offset": end,
            "append_ms": int(at.figures.get("append_ms", 0)),
            "current": at.offset >= end,
            "checked_ms": checked_ms,
            "late": int(at.figures.get("outcome_late", 0)),
            "dead": int(at.figures.get("outcome_dead", 0)),
        }
