"""The README's queries run as they stand there, on the tables that a worker writes."""

from __future__ import annotations

import re
import time
from pathlib import Path
from typing import Any

import pytest

from compose.local.stack import LocalStack
from tests.rows import HOUR_S, deadletter, digest_state, events, partial, partials, progress, uniq_state
from tests.warehouse import migrated

pytestmark = pytest.mark.stack

TEXT = (Path(__file__).parents[2] / "README.md").read_text("utf-8")
QUERIES = re.findall(r"^```sql\n(.*?)^```", TEXT, re.MULTILINE | re.DOTALL)
VIEWS = ("deadletters", "path_stats_hourly_partials", "path_stats_hourly", "stream_progress", "traffic_events")


async def test_every_query_gives_rows(stack: LocalStack) -> None:
    """Rows of two hours, of which one is this hour, so that a range up to now holds both."""
    this_hour = int(time.time()) // HOUR_S * HOUR_S
    async with migrated(stack.clickhouse.url) as sink:
        await sink.insert("traffic_events_rows", events(range(3)))
        await sink.insert(
            "path_stats_hourly_rows",
            partials(
                partial(hour=this_hour - HOUR_S, dimensions=[("region", "eu")], visitors=uniq_state([1, 2])),
                partial(hour=this_hour, visitors=uniq_state([2, 3])),
                partial(hour=this_hour, path="/untimed", timed=0, response_time=digest_state([])),
            ),
        )
        await sink.insert("stream_progress_rows", progress())
        await sink.insert("deadletters_rows", deadletter(append_ms=this_hour * 1000))
        answers = [await sink.query(_qualified(sql, sink.database)) for sql in QUERIES]
    assert len(QUERIES) >= 7
    assert [sql for sql, rows in zip(QUERIES, answers, strict=True) if not rows] == []
    by_text: dict[str, Any] = dict(zip(QUERIES, answers, strict=True))
    assert _only(by_text, "GROUP BY path ORDER BY total") == [("/p", 20, 2), ("/untimed", 10, 1)]
    assert _only(by_text, "[3], 1) AS p99_ms") == [("/p", 4.0)]
    assert sum(row[1] for row in _only(by_text, "uniqMerge")) in (6, 7)  # 7 where midnight lies between the hours


def _only(answers: dict[str, Any], part: str) -> list[tuple[Any, ...]]:
    (found,) = [rows for sql, rows in answers.items() if part in sql]
    return [tuple(row) for row in found]


def _qualified(sql: str, database: str) -> str:
    """The query on a test's own database, where the README relies on the connection's."""
    return re.sub(rf"\bFROM ({'|'.join(VIEWS)})\b", rf"FROM {database}.\1", sql)
