"""Durable inserts into ClickHouse: callers of one table share an insert, and an unavailable server is waited for.

Every table replaces rows of equal key, so an insert whose answer was lost is simply sent again.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from functools import partial

import pyarrow as pa

from sinks.availability import Availability
from sinks.backoff import Backoff
from sinks.clickhouse.connection import Connection
from sinks.clickhouse.partitions import slices
from sinks.errors import SinkRefused, SinkUnavailable
from sinks.threads import in_thread


@dataclass(frozen=True)
class Grouping:
    """How inserts are shared: at most this many rows and bytes (one caller's table is never cut for them), and inserts
    of a table start at least `spacing_s` apart, so that the server has fewer parts to merge."""

    rows_max: int = 500_000
    bytes_max: int = 128 << 20
    spacing_s: float = 0.2


@dataclass(eq=False)
class _Waiting:
    data: pa.Table
    stored: asyncio.Future[None]


class TableWriter:
    """The inserts of one table: at most one is under way, and what arrives meanwhile shares the next."""

    def __init__(
        self,
        table: str,
        connection: Connection,
        grouping: Grouping,
        backoff: Backoff,
        availability: Availability,
    ) -> None:
        self.table = table
        self._connection = connection
        self._grouping = grouping
        self._backoff = backoff
        self._availability = availability
        self._waiting: list[_Waiting] = []
        self._wake = asyncio.Event()
        self._task = asyncio.get_running_loop().create_task(self._run(), name=f"clickhouse-{table}")

    async def insert(self, data: pa.Table) -> None:
        """Wait until `data` is stored. Raises SinkRefused. Cancelling gives it up, unless it is being sent already."""
        entry = _Waiting(data, asyncio.get_running_loop().create_future())
        self._waiting.append(entry)
        self._wake.set()
        await entry.stored

    async def close(self) -> None:
        """Stop; inserts that still wait are cancelled."""
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        for entry in self._waiting:
            entry.stored.cancel()
        self._waiting.clear()

    async def _run(self) -> None:
        while True:
            await self._wake.wait()
            started = time.monotonic()
            group = self._take()
            try:
                await self._store(group)
            except Exception as error:
                # A fault of ours, not of the server: the callers must hear of it, and the writer goes on.
                for entry in group:
                    if not entry.stored.done():
                        entry.stored.set_exception(error)
            finally:
                for entry in group:
                    entry.stored.cancel()
            await asyncio.sleep(max(0.0, self._grouping.spacing_s - (time.monotonic() - started)))

    def _take(self) -> list[_Waiting]:
        """The first waiting entries that fit one insert; the rest stay in order."""
        group: list[_Waiting] = []
        rest: list[_Waiting] = []
        rows = size = 0
        for entry in (e for e in self._waiting if not e.stored.done()):
            rows, size = rows + entry.data.num_rows, size + entry.data.nbytes
            fits = rows <= self._grouping.rows_max and size <= self._grouping.bytes_max
            alike = not group or (fits and entry.data.schema.equals(group[0].data.schema))
            (group if alike and not rest else rest).append(entry)
        self._waiting = rest
        if not rest:
            self._wake.clear()
        return group

    async def _store(self, group: list[_Waiting]) -> None:
        attempt = 0
        while live := [e for e in group if not e.stored.done()]:
            try:
                await self._send(pa.concat_tables([e.data for e in live]))
            except SinkUnavailable as error:
                self._availability.down(self.table, error)
                await asyncio.sleep(self._backoff.delay_s(attempt))
                attempt += 1
            except SinkRefused as error:
                self._availability.up(self.table)
                await self._refuse(live, error)
            else:
                self._availability.up(self.table)
                for entry in live:
                    if not entry.stored.done():
                        entry.stored.set_result(None)

    async def _send(self, data: pa.Table) -> None:
        for part in slices(self.table, data):
            await in_thread(f"insert-{self.table}", partial(self._connection.insert, self.table, part))

    async def _refuse(self, live: list[_Waiting], error: SinkRefused) -> None:
        """One caller's rows may have spoiled the others': each is tried alone before it is refused."""
        if len(live) == 1:
            live[0].stored.set_exception(error)
            return
        for entry in live:
            await self._store([entry])
