"""The contract of the ClickHouse sink: what it stored counts once, whatever happened on the way."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pyarrow as pa
import pytest
from structlog.testing import capture_logs

from compose.local.clickhouse import ClickHouse
from compose.local.process import free_port
from compose.local.stack import LocalStack
from sinks.clickhouse.connection import Server
from sinks.clickhouse.sink import ClickHouseSink
from sinks.clickhouse.writer import Grouping
from sinks.errors import SinkRefused, SinkUnavailable
from tests.faults import FaultProxy
from tests.rows import deadletter, events, partial, partials, progress
from tests.waiting import until
from tests.warehouse import KEPT_DAYS, migrated, new_database, new_sink, parts_of, rows_of, value_of
from topics.rows import version_of

pytestmark = pytest.mark.stack

EVENTS = "traffic_events_rows"
PARTIALS = "path_stats_hourly_rows"
DEADLINE_S = 20.0


@pytest.fixture
async def sink(stack: LocalStack) -> AsyncIterator[ClickHouseSink]:
    async with migrated(stack.clickhouse.url) as sink:
        yield sink


@pytest.fixture
async def faulty(stack: LocalStack) -> AsyncIterator[tuple[ClickHouseSink, FaultProxy]]:
    """A sink that reaches ClickHouse through a proxy that can fail."""
    with FaultProxy(stack.clickhouse.port) as proxy:
        async with migrated(proxy.url) as sink:
            yield sink, proxy


async def _counted(sink: ClickHouseSink) -> tuple[int, int]:
    return (await rows_of(sink, "SELECT count(), uniqExact(event_id) FROM {db}.traffic_events"))[0]


@pytest.mark.parametrize(
    ("view", "table", "data"),
    [
        ("traffic_events", EVENTS, events(range(10))),
        ("path_stats_hourly", PARTIALS, partials(partial())),
        ("path_stats_hourly_partials", PARTIALS, partials(partial())),
        ("stream_progress", "stream_progress_rows", progress()),
        ("deadletters", "deadletters_rows", deadletter()),
    ],
)
async def test_the_same_again_changes_nothing(sink: ClickHouseSink, view: str, table: str, data: pa.Table) -> None:
    await sink.insert(table, data)
    await sink.insert(table, data)
    assert await parts_of(sink, table) == 2
    assert await value_of(sink, f"SELECT count() FROM {{db}}.{view}") == data.num_rows


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 2, 0)])
async def test_an_older_version_loses_in_any_order(sink: ClickHouseSink, order: tuple[int, ...]) -> None:
    """A raised epoch wins over any offset of the one before."""
    states = [(version_of(1, 5_000), 10), (version_of(1, 9_000), 20), (version_of(2, 3), 7)]
    for index in order:
        version, requests = states[index]
        await sink.insert(PARTIALS, partials(partial(version=version, requests=requests)))
    assert await rows_of(sink, "SELECT requests FROM {db}.path_stats_hourly") == [(7,)]


async def test_progress_of_a_stalled_owner_loses(sink: ClickHouseSink) -> None:
    for at in (
        {"epoch": 1, "offset": 50, "checked_ms": 9_000},
        {"epoch": 2, "offset": 8, "checked_ms": 5_000},
        {"epoch": 2, "offset": 8, "checked_ms": 6_000},
        {"epoch": 2, "offset": 7, "checked_ms": 9_999},
        {"epoch": 1, "offset": 60, "checked_ms": 9_999},
    ):
        await sink.insert("stream_progress_rows", progress(**at))
    found = await rows_of(sink, "SELECT epoch, offset, toUnixTimestamp64Milli(checked_at) FROM {db}.stream_progress")
    assert found == [(2, 8, 6_000)]


async def test_callers_share_inserts_and_each_is_stored(sink: ClickHouseSink) -> None:
    # Their dictionaries differ, as those of different partitions do.
    batches = [events(range(i * 10, i * 10 + 10), path=f"/only/{i}", method=f"M{i}") for i in range(20)]
    await asyncio.gather(*(sink.insert(EVENTS, batch) for batch in batches))
    assert await parts_of(sink, EVENTS) <= 3
    found = await rows_of(sink, "SELECT path, any(method), count() FROM {db}.traffic_events GROUP BY path")
    assert sorted(found) == sorted((f"/only/{i}", f"M{i}", 10) for i in range(20))


async def test_rows_that_replace_each_other_within_one_insert_are_stored(sink: ClickHouseSink) -> None:
    versions = [partial(version=version_of(1, v), requests=v) for v in (3, 9, 5)]
    await asyncio.wait_for(sink.insert(PARTIALS, partials(*versions, *versions)), DEADLINE_S)
    assert await rows_of(sink, "SELECT requests FROM {db}.path_stats_hourly") == [(9,)]


async def test_rows_that_have_expired_already_are_no_failure(sink: ClickHouseSink) -> None:
    await sink.migrate(1)
    await asyncio.wait_for(sink.insert(EVENTS, events(range(10), timestamp_ms=1_600_000_000_000)), DEADLINE_S)
    assert sink.available


async def test_a_group_is_bounded(stack: LocalStack) -> None:
    async with migrated(stack.clickhouse.url, grouping=Grouping(rows_max=50, spacing_s=0.0)) as sink:
        batches = [events(range(i * 20, i * 20 + 20)) for i in range(10)]
        await asyncio.gather(*(sink.insert(EVENTS, batch) for batch in batches))
        assert await parts_of(sink, EVENTS) == 5
        assert await _counted(sink) == (200, 200)


@pytest.mark.parametrize("after_bytes", [0, 20, 200])
async def test_an_answer_lost_after_the_rows_were_stored(
    faulty: tuple[ClickHouseSink, FaultProxy], after_bytes: int
) -> None:
    sink, proxy = faulty
    proxy.cut_answers(after_bytes, times=3)
    await sink.insert(EVENTS, events(range(100)))
    assert proxy.cuts == 3
    assert await parts_of(sink, EVENTS) == 4, "every attempt was stored"
    assert await _counted(sink) == (100, 100)


@pytest.mark.parametrize("after_bytes", [100, 2_000, 20_000])
async def test_a_request_cut_on_its_way(faulty: tuple[ClickHouseSink, FaultProxy], after_bytes: int) -> None:
    sink, proxy = faulty
    proxy.cut_requests(after_bytes, times=2)
    await sink.insert(EVENTS, events(range(3_000)))
    assert proxy.cuts == 2
    assert await _counted(sink) == (3_000, 3_000)


async def test_a_server_that_refuses_is_waited_for(faulty: tuple[ClickHouseSink, FaultProxy]) -> None:
    await _outage(*faulty, seconds=2.0)


@pytest.mark.long
async def test_a_server_that_refuses_for_20_seconds_is_waited_for(faulty: tuple[ClickHouseSink, FaultProxy]) -> None:
    await _outage(*faulty, seconds=20.0)


async def _outage(sink: ClickHouseSink, proxy: FaultProxy, seconds: float) -> None:
    with capture_logs() as logs:
        await sink.insert(EVENTS, events(range(10)))
        proxy.refuse()
        waiting = [asyncio.create_task(sink.insert(EVENTS, events(range(i, i + 10)))) for i in range(10, 50, 10)]
        await until(lambda: not sink.available)
        done, _ = await asyncio.wait(waiting, timeout=seconds)
        assert not done and not sink.available
        assert sink.last_error is not None and "traffic_events_rows" in sink.last_error
        proxy.serve()
        await asyncio.wait_for(asyncio.gather(*waiting), DEADLINE_S)
    assert sink.available
    assert await _counted(sink) == (50, 50)
    assert [entry["event"] for entry in logs] == ["sink unavailable", "sink available"], "once a change"


async def test_changes_of_availability_are_told(stack: LocalStack) -> None:
    told: list[bool] = []
    with FaultProxy(stack.clickhouse.port) as proxy:
        async with migrated(proxy.url, on_change=told.append) as sink:
            proxy.refuse()
            waiting = asyncio.create_task(sink.insert(EVENTS, events(range(10))))
            await until(lambda: not sink.available)
            proxy.serve()
            await asyncio.wait_for(waiting, DEADLINE_S)
    assert told == [False, True]


async def test_too_many_parts_are_waited_out(sink: ClickHouseSink) -> None:
    limit = f"ALTER TABLE {sink.qualified(EVENTS)} MODIFY SETTING parts_to_throw_insert = "
    await sink.query(limit + "1")
    await sink.insert(EVENTS, events(range(10)))
    waiting = asyncio.create_task(sink.insert(EVENTS, events(range(10, 20))))
    await until(lambda: not sink.available)
    await sink.query(limit + "3000")
    await asyncio.wait_for(waiting, DEADLINE_S)
    assert await _counted(sink) == (20, 20)


@pytest.mark.parametrize(
    ("table", "data"),
    [
        ("no_such_table", events([1])),
        (EVENTS, events([1]).append_column("surprise", pa.array(["x"]))),
        (EVENTS, events([1]).set_column(4, "status", pa.array(["two hundred"]))),
        (PARTIALS, partials(partial(visitors=b"\x05\x09"))),
        (PARTIALS, partials(partial(response_time=b""))),
    ],
    ids=["table", "column", "type", "state", "empty state"],
)
async def test_what_can_never_be_stored_is_refused(sink: ClickHouseSink, table: str, data: pa.Table) -> None:
    with pytest.raises(SinkRefused, match=f"insert into {table}"):
        await asyncio.wait_for(sink.insert(table, data), DEADLINE_S)
    assert sink.available


async def test_one_refused_table_spares_the_others_in_its_insert(sink: ClickHouseSink) -> None:
    good = [partials(partial(path=f"/{i}")) for i in range(6)]
    bad = partials(partial(visitors=b"\x05\x09"))
    outcomes = await asyncio.gather(
        *(sink.insert(PARTIALS, data) for data in [*good[:3], bad, *good[3:]]), return_exceptions=True
    )
    assert [type(outcome) for outcome in outcomes] == [type(None)] * 3 + [SinkRefused] + [type(None)] * 3
    assert await value_of(sink, "SELECT count() FROM {db}.path_stats_hourly") == 6


async def test_tables_do_not_wait_for_each_other(sink: ClickHouseSink) -> None:
    await sink.query(f"ALTER TABLE {sink.qualified(EVENTS)} MODIFY SETTING parts_to_throw_insert = 1")
    await sink.insert(EVENTS, events([1]))
    stuck = asyncio.create_task(sink.insert(EVENTS, events([2])))
    await until(lambda: not sink.available)
    await asyncio.wait_for(sink.insert(PARTIALS, partials(partial())), DEADLINE_S)
    assert not sink.available, "one table still waits"
    stuck.cancel()


async def test_an_insert_given_up_during_an_outage_is_not_made_later(
    faulty: tuple[ClickHouseSink, FaultProxy],
) -> None:
    sink, proxy = faulty
    proxy.refuse()
    given_up = asyncio.create_task(sink.insert(EVENTS, events(range(10))))
    await until(lambda: not sink.available)
    given_up.cancel()
    kept = asyncio.create_task(sink.insert(EVENTS, events(range(10, 15))))
    proxy.serve()
    await asyncio.wait_for(kept, DEADLINE_S)
    assert await _counted(sink) == (5, 5)


async def test_closing_during_an_outage_ends_at_once(stack: LocalStack) -> None:
    with FaultProxy(stack.clickhouse.port) as proxy:
        sink = new_sink(proxy.url, new_database())
        await sink.migrate(KEPT_DAYS)
        proxy.refuse()
        waiting = [asyncio.create_task(sink.insert(table, events([1]))) for table in (EVENTS, EVENTS, "other")]
        await until(lambda: not sink.available)
        await asyncio.wait_for(sink.close(), 2.0)
        done, _ = await asyncio.wait(waiting, timeout=2.0)
        assert len(done) == 3 and all(task.cancelled() for task in done)


async def test_an_event_span_over_100_days_is_stored(sink: ClickHouseSink) -> None:
    spread = pa.concat_tables([events([i], timestamp_ms=1_700_000_000_000 + i * 86_400_000) for i in range(250)])
    await asyncio.wait_for(sink.insert(EVENTS, spread), DEADLINE_S)
    assert await _counted(sink) == (250, 250)
    assert await parts_of(sink, EVENTS) == 250


async def test_rollups_over_100_months_are_stored(sink: ClickHouseSink) -> None:
    # The first hour of a month and the last of another: two partitions in every bin of 28 days.
    months = pa.concat_tables([partials(partial(hour=1_000_000_800 + i * 15 * 86_400)) for i in range(400)])
    await asyncio.wait_for(sink.insert(PARTIALS, months), DEADLINE_S)
    assert await value_of(sink, "SELECT count() FROM {db}.path_stats_hourly") == 400


async def test_columns_go_by_name(sink: ClickHouseSink) -> None:
    data = events(range(5))
    await sink.insert(EVENTS, data.select(list(reversed(data.column_names))))
    assert await value_of(sink, "SELECT groupArray(event_id) FROM {db}.traffic_events") == [
        f"event-{i}" for i in range(5)
    ]


async def test_any_text_survives(sink: ClickHouseSink) -> None:
    paths = ["/v1/docs:batchGet", "/a|||b", "/nul\x00", "/ü/日本/🙂", "/'; DROP TABLE x; --", "/\\n\n\t", "/{db}"]
    data = pa.concat_tables([events([i], path=path) for i, path in enumerate(paths)])
    await sink.insert(EVENTS, data)
    found = await sink.query(f"SELECT path FROM {sink.qualified('traffic_events')} ORDER BY source_offset")
    assert [row[0] for row in found] == paths


@pytest.mark.parametrize("after_bytes", [0, 20, 100, 200, 300, 100_000])
async def test_a_cut_query_is_an_error_never_a_part_of_the_answer(
    faulty: tuple[ClickHouseSink, FaultProxy], after_bytes: int
) -> None:
    sink, proxy = faulty
    await sink.query("SELECT 1")
    proxy.cut_answers(after_bytes, times=10, marker=b"POST")
    with pytest.raises(SinkUnavailable):
        await asyncio.wait_for(sink.query("SELECT number FROM numbers(200000)"), DEADLINE_S)
    proxy.serve()
    assert len(await sink.query("SELECT number FROM numbers(200000)")) == 200_000


async def test_compressed_inserts_are_the_same(stack: LocalStack) -> None:
    async with migrated(stack.clickhouse.url) as sink:
        far = ClickHouseSink(Server(stack.clickhouse.url, sink.database, compress=True))
        await far.insert(EVENTS, events(range(5_000)))
        await far.close()
        assert await _counted(sink) == (5_000, 5_000)


async def test_a_wrong_password_is_waited_out(tmp_path: Any) -> None:
    """An operator can put it right; refusing would give the rows up."""
    server = ClickHouse(tmp_path, free_port(), password="secret")
    server.start()
    try:
        right = ClickHouseSink(Server(server.url, "t", password="secret"))
        await right.migrate(KEPT_DAYS)
        wrong = ClickHouseSink(Server(server.url, "t", password="guess"))
        with pytest.raises(SinkUnavailable, match="Authentication failed"):
            await wrong.query("SELECT 1")
        waiting = asyncio.create_task(wrong.insert(EVENTS, events([1])))
        await until(lambda: not wrong.available)
        assert not waiting.done()
        await wrong.close()
        await right.close()
    finally:
        server.stop()
