"""A ClickHouse sink on a database of its own, for one test."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from sinks.backoff import Backoff
from sinks.clickhouse.connection import Server
from sinks.clickhouse.sink import ClickHouseSink
from sinks.clickhouse.writer import Grouping

#: Rows of any test's fixed dates are kept.
KEPT_DAYS = 10_000


def new_database() -> str:
    """A name that no other test has."""
    return f"t_{uuid.uuid4().hex[:12]}"


def new_sink(url: str, database: str, **options: Any) -> ClickHouseSink:
    """A sink that retries quickly."""
    options = {"grouping": Grouping(spacing_s=0.0), "backoff": Backoff(0.05, 0.2), **options}
    return ClickHouseSink(Server(url, database, connect_timeout_s=2.0, timeout_s=20.0), **options)


@asynccontextmanager
async def migrated(url: str, **options: Any) -> AsyncIterator[ClickHouseSink]:
    """A sink on a fresh database with the schema, where parts never merge; the database is dropped at the end."""
    database = new_database()
    sink = new_sink(url, database, **options)
    try:
        await sink.migrate(KEPT_DAYS)
        for (table,) in await sink.query(
            "SELECT name FROM system.tables WHERE database = {database:String} AND engine LIKE '%MergeTree'",
            database=database,
        ):
            await sink.query(f"SYSTEM STOP MERGES {sink.qualified(table)}")
        yield sink
        await sink.query(f"DROP DATABASE {database}")
    finally:
        await sink.close()


async def rows_of(sink: ClickHouseSink, sql: str) -> list[tuple[Any, ...]]:
    """The rows of a query in which `{db}` stands for the sink's database."""
    return [tuple(row) for row in await sink.query(sql.replace("{db}", sink.database))]


async def value_of(sink: ClickHouseSink, sql: str) -> Any:
    """The only value of a query."""
    ((value,),) = await rows_of(sink, sql)
    return value


async def parts_of(sink: ClickHouseSink, table: str) -> int:
    """How many parts a table has: with merges stopped, one for each insert and partition."""
    return int(
        await value_of(
            sink, f"SELECT count() FROM system.parts WHERE database = '{{db}}' AND table = '{table}' AND active"
        )
    )
