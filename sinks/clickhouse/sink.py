"""The ClickHouse sink that compose makes and streams write to: migrate, insert, ask, close."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import pyarrow as pa

from sinks.availability import Availability
from sinks.backoff import Backoff
from sinks.clickhouse.connection import Connection, Server
from sinks.clickhouse.schema import Migration, keep_events_for, migrate, shipped
from sinks.clickhouse.writer import Grouping, TableWriter
from sinks.threads import in_thread

T = TypeVar("T")


class ClickHouseSink:
    """Durable writes into one database, for one event loop.

    An insert is stored when it returns and waits, with backoff, for as long as the server is unavailable, so a caller's
    memory is bounded by what it has in `insert`. `available` and `last_error` say how the writes fare.
    """

    def __init__(
        self,
        server: Server,
        grouping: Grouping = Grouping(),
        backoff: Backoff = Backoff(),
        on_change: Callable[[bool], None] | None = None,
    ) -> None:
        self._availability = Availability("clickhouse", on_change)
        self._server = server
        self._grouping = grouping
        self._backoff = backoff
        self._writers: dict[str, TableWriter] = {}
        self._connections: list[Connection] = []
        self._asking = asyncio.Lock()
        self._queries = self._connect()

    @property
    def available(self) -> bool:
        """Whether every table's last insert was answered."""
        return self._availability.available

    @property
    def last_error(self) -> str | None:
        """What the newest failed attempt met."""
        return self._availability.last_error

    @property
    def database(self) -> str:
        """The database of every table."""
        return self._server.database

    def qualified(self, table: str) -> str:
        """The table's or view's name with its database, quoted, for a query."""
        return self._server.qualified(table)

    async def migrate(self, hot_days: int, migrations: Sequence[Migration] | None = None) -> list[str]:
        """Bring the database to this version's schema and return the names applied; waits for the server to be there.

        Raises SinkRefused (SchemaChanged, or a statement that the server refuses).
        """

        def work() -> list[str]:
            applied = migrate(self._queries, list(shipped() if migrations is None else migrations))
            keep_events_for(self._queries, hot_days)
            return applied

        return await self._availability.wait_for("schema", lambda: self._ask(work), self._backoff)

    async def insert(self, table: str, data: pa.Table) -> None:
        """Store the rows of `data`: durable when it returns, alone or with other callers' rows of the same table.

        Columns go by name. Raises SinkRefused for rows that the table can never take.
        """
        if data.num_rows:
            await self._writer(table).insert(data)

    async def query(self, sql: str, **parameters: Any) -> Sequence[Sequence[Any]]:
        """The rows of one query with `{name:Type}` placeholders. Raises SinkUnavailable at once, SinkRefused."""
        return await self._ask(lambda: self._queries.query(sql, parameters))

    async def close(self) -> None:
        """Stop writing and close every connection; inserts that still wait are cancelled."""
        await asyncio.gather(*(writer.close() for writer in self._writers.values()))
        for connection in self._connections:
            connection.close()

    def _writer(self, table: str) -> TableWriter:
        if table not in self._writers:
            self._writers[table] = TableWriter(
                table, self._connect(), self._grouping, self._backoff, self._availability
            )
        return self._writers[table]

    def _connect(self) -> Connection:
        # The client takes one request at a time, so each table has its own.
        connection = Connection(self._server)
        self._connections.append(connection)
        return connection

    async def _ask(self, work: Callable[[], T]) -> T:
        async with self._asking:
            return await in_thread("clickhouse", work)
