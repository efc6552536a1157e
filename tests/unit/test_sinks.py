"""The parts of the sinks that need no server."""

from __future__ import annotations

import socket
import subprocess
import sys
import textwrap
from typing import Any

import pyarrow as pa
import pytest
from structlog.testing import capture_logs

from sinks.availability import Availability
from sinks.backoff import Backoff
from sinks.clickhouse.partitions import BINS_MAX, slices
from sinks.clickhouse.schema import Migration, shipped
from sinks.errors import SinkRefused, SinkUnavailable
from topics.rows import EPOCH_MAX, OFFSET_MAX, PATH_STATS_HOURLY_ROWS, TRAFFIC_EVENTS_ROWS, version_of

DAY_MS = 86_400_000


def _days(*days: int) -> pa.Table:
    return pa.table({"timestamp_ms": [day * DAY_MS + index for index, day in enumerate(days)]})


def test_an_ordinary_insert_is_not_cut() -> None:
    data = _days(*[20_000 + i % BINS_MAX for i in range(1_000)])
    assert [part is data for part in slices(TRAFFIC_EVENTS_ROWS, data)] == [True]


def test_a_few_days_far_apart_are_not_cut() -> None:
    data = _days(*[(i % 4) * 1_000 for i in range(200)])
    assert [part.num_rows for part in slices(TRAFFIC_EVENTS_ROWS, data)] == [200]


def test_a_long_span_is_cut_by_day_and_keeps_every_row_once() -> None:
    data = _days(*[(i * 7) % 365 for i in range(1_000)])
    parts = list(slices(TRAFFIC_EVENTS_ROWS, data))
    assert len(parts) == -(-365 // BINS_MAX)
    times = [part.column("timestamp_ms").to_pylist() for part in parts]
    assert sorted(t for part in times for t in part) == sorted(data.column("timestamp_ms").to_pylist())
    assert all(len({t // DAY_MS for t in part}) <= BINS_MAX for part in times)


def test_rollups_are_cut_by_month_and_other_tables_never() -> None:
    hours = pa.table({"hour": pa.array([i * 28 * 86_400 for i in range(BINS_MAX + 1)], pa.uint32())})
    assert [part.num_rows for part in slices(PATH_STATS_HOURLY_ROWS, hours)] == [BINS_MAX, 1]
    assert [part.num_rows for part in slices("deadletters_rows", hours)] == [BINS_MAX + 1]


def test_statements_leave_comments_out_and_name_the_database() -> None:
    sql = "-- a; b\nCREATE TABLE {database}.t\n(\n    a String DEFAULT ';'\n);\n\n-- end\nSELECT 1;\n"
    assert Migration("0001_x", sql).statements("my db") == [
        "CREATE TABLE `my db`.t\n(\n    a String DEFAULT ';'\n)",
        "SELECT 1",
    ]


def test_shipped_migrations_are_numbered_without_gaps_and_may_run_twice() -> None:
    migrations = shipped()
    assert [int(m.name[:4]) for m in migrations] == list(range(1, len(migrations) + 1))
    for migration in migrations:
        for statement in migration.statements("d"):
            assert "IF NOT EXISTS" in statement or "OR REPLACE" in statement, statement[:80]


def test_versions_order_by_epoch_then_offset() -> None:
    places = [(0, 0), (0, 1), (0, OFFSET_MAX), (1, 0), (1, 5), (EPOCH_MAX, OFFSET_MAX)]
    versions = [version_of(*place) for place in places]
    assert versions == sorted(versions) and versions[-1] == 2**64 - 1


def test_backoff_grows_to_its_cap_and_not_past_it() -> None:
    backoff = Backoff(base_s=0.1, cap_s=2.0)
    for attempt, most in [(0, 0.1), (3, 0.8), (10, 2.0), (10_000, 2.0)]:
        delays = [backoff.delay_s(attempt) for _ in range(300)]
        assert 0 <= min(delays) < most * 0.1 and most * 0.9 < max(delays) <= most


async def test_an_outage_is_logged_and_told_once_a_change() -> None:
    told: list[bool] = []
    state = Availability("store", told.append)
    answers: list[Any] = [SinkUnavailable("one"), SinkUnavailable("two"), "done"]

    async def attempt() -> Any:
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    with capture_logs() as logs:
        state.down("other", SinkUnavailable("elsewhere"))
        assert await state.wait_for("part", attempt, Backoff(0.001, 0.001)) == "done"
        assert not state.available and state.last_error == "two"
        state.up("other")
    assert told == [False, True]
    assert [(entry["event"], entry["part"]) for entry in logs] == [
        ("sink unavailable", "other"),
        ("sink unavailable", "part"),
        ("sink available", "part"),
        ("sink available", "other"),
    ]


async def test_a_refusal_is_not_waited_for() -> None:
    async def attempt() -> None:
        raise SinkRefused("never")

    with pytest.raises(SinkRefused):
        await Availability("store").wait_for("part", attempt, Backoff())


def test_a_store_that_hangs_does_not_keep_a_closed_process_alive() -> None:
    program = """
        import asyncio, sys
        import pyarrow as pa
        from sinks.clickhouse.connection import Server
        from sinks.clickhouse.sink import ClickHouseSink
        from sinks.objects import Bucket, BucketAddress

        async def main(url):
            sink, bucket = ClickHouseSink(Server(url, "d")), Bucket(BucketAddress(url, "b", "k", "s"))
            waiting = [asyncio.create_task(sink.insert("t", pa.table({"a": [1]}))),
                       asyncio.create_task(bucket.put("k", b"v"))]
            await asyncio.wait(waiting, timeout=0.5)
            await asyncio.gather(sink.close(), bucket.close())
            print("closed", [task.done() for task in waiting], flush=True)

        asyncio.run(main(sys.argv[1]))
    """
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        ran = subprocess.run(
            [sys.executable, "-c", textwrap.dedent(program), url],
            timeout=30,
            capture_output=True,
            text=True,
            check=True,
        )
    assert "closed" in ran.stdout, ran.stdout + ran.stderr
