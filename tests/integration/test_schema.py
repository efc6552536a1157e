"""The schema: migrations that any number of workers may run, and views that count rightly whether or not parts merged."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pyarrow as pa
import pytest

from compose.local.stack import LocalStack
from sinks.clickhouse import queries
from sinks.clickhouse.schema import Migration, SchemaChanged, shipped
from sinks.clickhouse.sink import ClickHouseSink
from sinks.errors import SinkRefused
from tests.faults import FaultProxy
from tests.rows import (
    DAY,
    HOUR_S,
    audio_segment,
    audio_session,
    deadletter,
    digest_state,
    events,
    partial,
    partials,
    progress,
    uniq_state,
)
from tests.warehouse import KEPT_DAYS, migrated, new_database, new_sink, rows_of, value_of
from topics.rows import SCHEMAS, version_of

pytestmark = pytest.mark.stack

EVENTS = "traffic_events_rows"
PARTIALS = "path_stats_hourly_rows"
PROGRESS = "stream_progress_rows"


@pytest.fixture
async def sink(stack: LocalStack) -> AsyncIterator[ClickHouseSink]:
    async with migrated(stack.clickhouse.url) as sink:
        yield sink


@pytest.fixture
async def bare(stack: LocalStack) -> AsyncIterator[ClickHouseSink]:
    """A sink whose database does not exist yet."""
    sink = new_sink(stack.clickhouse.url, new_database())
    yield sink
    await sink.query(f"DROP DATABASE IF EXISTS {sink.database}")
    await sink.close()


def _at(hours: float) -> datetime:
    return datetime.fromtimestamp(DAY + hours * HOUR_S, UTC)


# -- migrations --------------------------------------------------------------------------------------------------------


async def test_migrations_are_applied_once_and_recorded(bare: ClickHouseSink) -> None:
    names = [migration.name for migration in shipped()]
    assert await bare.migrate(KEPT_DAYS) == names
    assert await bare.migrate(KEPT_DAYS) == []
    recorded = await rows_of(bare, "SELECT name, checksum FROM {db}.schema_migrations FINAL ORDER BY name")
    assert recorded == [(migration.name, migration.checksum) for migration in shipped()]


async def test_workers_that_start_at_once_agree(stack: LocalStack, bare: ClickHouseSink) -> None:
    others = [new_sink(stack.clickhouse.url, bare.database) for _ in range(4)]
    await asyncio.gather(*(other.migrate(KEPT_DAYS) for other in others))
    assert await bare.migrate(KEPT_DAYS) == []
    assert await value_of(bare, "SELECT count() FROM {db}.schema_migrations FINAL") == len(shipped())
    await bare.insert(EVENTS, events(range(3)))
    assert await value_of(bare, "SELECT count() FROM {db}.traffic_events") == 3
    for other in others:
        await other.close()


async def test_a_migration_cut_in_the_middle_is_finished_at_the_next_start(
    stack: LocalStack, bare: ClickHouseSink
) -> None:
    with FaultProxy(stack.clickhouse.port) as proxy:
        cut = new_sink(proxy.url, bare.database)
        proxy.cut_answers(times=10, marker=b"GET")
        proxy.cut_requests(0, times=3, marker=b"POST")
        starting = asyncio.create_task(cut.migrate(KEPT_DAYS))
        await asyncio.wait_for(starting, 30)
        await cut.close()
    assert await bare.migrate(KEPT_DAYS) == []


async def test_a_changed_file_is_refused_and_changes_nothing(bare: ClickHouseSink) -> None:
    await bare.migrate(KEPT_DAYS)
    edited = [Migration(m.name, m.sql + "\n-- edited") for m in shipped()]
    added = Migration("9999_added", "CREATE TABLE IF NOT EXISTS {database}.added (a UInt8) ENGINE = Memory;")
    with pytest.raises(SchemaChanged, match=r"0001_traffic .* new numbered file"):
        await bare.migrate(KEPT_DAYS, [*edited, added])
    assert await value_of(bare, "SELECT count() FROM system.tables WHERE database = '{db}' AND name = 'added'") == 0


async def test_a_new_file_is_added_to_those_applied(bare: ClickHouseSink) -> None:
    await bare.migrate(KEPT_DAYS)
    added = Migration("9999_added", "CREATE TABLE IF NOT EXISTS {database}.added (a UInt8) ENGINE = Memory;")
    assert await bare.migrate(KEPT_DAYS, [*shipped(), added]) == ["9999_added"]
    assert await value_of(bare, "SELECT count() FROM {db}.added") == 0


async def test_a_failing_file_is_not_recorded(bare: ClickHouseSink) -> None:
    with pytest.raises(SinkRefused, match="SELEC"):
        await bare.migrate(KEPT_DAYS, [Migration("0001_wrong", "SELEC 1;")])
    assert await value_of(bare, "SELECT count() FROM {db}.schema_migrations") == 0


async def test_a_server_that_is_not_there_yet_is_waited_for(stack: LocalStack, bare: ClickHouseSink) -> None:
    with FaultProxy(stack.clickhouse.port) as proxy:
        proxy.refuse()
        early = new_sink(proxy.url, bare.database)
        starting = asyncio.create_task(early.migrate(KEPT_DAYS))
        done, _ = await asyncio.wait([starting], timeout=0.5)
        assert not done and not early.available
        proxy.serve()
        assert await asyncio.wait_for(starting, 20) == [m.name for m in shipped()]
        assert early.available
        await early.close()


async def test_hot_days_follow_the_setting(bare: ClickHouseSink) -> None:
    ttl = "SELECT extract(engine_full, 'TTL (.*) SETTINGS') FROM system.tables WHERE database = '{db}' AND name = "
    for days in (3, 3, 14, 2):
        await bare.migrate(days)
        assert await value_of(bare, f"{ttl} '{EVENTS}'") == f"toDateTime(timestamp) + toIntervalDay({days})"


async def test_events_expire_by_their_own_time(bare: ClickHouseSink) -> None:
    await bare.migrate(3)
    now = datetime.now(UTC)
    for offset, age in enumerate([timedelta(days=1), timedelta(days=2), timedelta(days=5), timedelta(days=30)]):
        await bare.insert(EVENTS, events([offset], timestamp_ms=int((now - age).timestamp() * 1000)))
    await bare.query(f"OPTIMIZE TABLE {bare.qualified(EVENTS)} FINAL")
    assert await value_of(bare, "SELECT arraySort(groupArray(source_offset)) FROM {db}.traffic_events") == [0, 1]


@pytest.mark.parametrize("table", list(SCHEMAS))
async def test_every_sent_column_is_in_its_table(sink: ClickHouseSink, table: str) -> None:
    columns = await value_of(
        sink,
        f"SELECT groupArray(name) FROM system.columns WHERE database = '{{db}}' AND table = '{table}' "
        "AND default_kind = ''",
    )
    assert columns == SCHEMAS[table].names


# -- traffic events ----------------------------------------------------------------------------------------------------


async def test_events_read_back_as_sent(sink: ClickHouseSink) -> None:
    await sink.insert(
        EVENTS, events([7], timestamp_ms=DAY * 1000 + 123, dimensions=[("tenant", "a"), ("region", "eu")])
    )
    await sink.insert(EVENTS, events([8], response_time_ms=None, bytes=None, user_agent="curl/8", producer=None))
    found = await rows_of(
        sink,
        "SELECT event_id, timestamp, timestamp_ms, response_time_ms, bytes, user_agent, dimensions, producer "
        "FROM {db}.traffic_events ORDER BY event_id",
    )
    at = datetime.fromtimestamp(DAY, UTC)
    first, second = at + timedelta(milliseconds=123), at + timedelta(milliseconds=8)
    assert found == [
        ("event-7", first, DAY * 1000 + 123, 12.5, 100, None, {"tenant": "a", "region": "eu"}, "edge"),
        ("event-8", second, DAY * 1000 + 8, None, None, "curl/8", {}, ""),
    ]
    rest = await rows_of(
        sink,
        "SELECT method, path, status, client_ip, source_partition, source_offset, append_ms FROM {db}.traffic_events",
    )
    assert sorted(rest) == [
        ("GET", "/p/1", 200, "192.0.2.1", 0, 7, DAY * 1000 + 7),
        ("GET", "/p/2", 200, "192.0.2.1", 0, 8, DAY * 1000 + 8),
    ]


async def test_a_topic_made_again_does_not_replace_the_old_ones_events(sink: ClickHouseSink) -> None:
    await sink.insert(EVENTS, events(range(5)))
    again = events(range(5)).set_column(0, "event_id", pa.array([f"other-{i}" for i in range(5)]))
    await sink.insert(EVENTS, again)
    assert await value_of(sink, "SELECT count() FROM {db}.traffic_events") == 10


async def test_views_count_the_same_before_and_after_merges(sink: ClickHouseSink) -> None:
    for _ in range(3):
        await sink.insert(EVENTS, events(range(100)))
    counts = [await value_of(sink, "SELECT count() FROM {db}.traffic_events")]
    await sink.query(f"SYSTEM START MERGES {sink.qualified(EVENTS)}")
    await sink.query(f"OPTIMIZE TABLE {sink.qualified(EVENTS)} FINAL")
    counts.append(await value_of(sink, "SELECT count() FROM {db}.traffic_events"))
    assert counts == [100, 100]
    assert await value_of(sink, f"SELECT count() FROM {{db}}.{EVENTS}") == 100


# -- hourly rollups ----------------------------------------------------------------------------------------------------


async def test_the_columns_are_those_of_the_contract(sink: ClickHouseSink) -> None:
    columns = await rows_of(
        sink, "SELECT name, type FROM system.columns WHERE database = '{db}' AND table = 'path_stats_hourly'"
    )
    assert columns == [
        ("hour", "DateTime('UTC')"),
        ("path", "String"),
        ("method", "LowCardinality(String)"),
        ("status_class", "LowCardinality(String)"),
        ("dimensions", "Map(String, String)"),
        ("requests", "UInt64"),
        ("errors", "UInt64"),
        ("bytes", "UInt64"),
        ("avg_response_time_ms", "Nullable(Float64)"),
        ("p50_response_time_ms", "Nullable(Float32)"),
        ("p95_response_time_ms", "Nullable(Float32)"),
        ("p99_response_time_ms", "Nullable(Float32)"),
        ("max_response_time_ms", "Nullable(Float64)"),
        ("unique_ips", "UInt64"),
    ]
    states = await rows_of(
        sink,
        "SELECT name, type FROM system.columns WHERE database = '{db}' AND table = 'path_stats_hourly_partials' "
        "AND type LIKE 'Agg%'",
    )
    assert states == [
        ("visitors", "AggregateFunction(uniq, String)"),
        ("response_time", "AggregateFunction(quantilesTDigest(0.5, 0.95, 0.99), Float32)"),
    ]


async def test_partials_of_two_partitions_are_one_row(sink: ClickHouseSink) -> None:
    other = partial(
        source_partition=1,
        requests=5,
        errors=2,
        bytes=1 << 60,
        response_time_us=30_000,
        timed=2,
        max_response_time_us=20_500,
        visitors=uniq_state([13, 14]),
        response_time=digest_state([(10.0, 1.0), (20.0, 1.0)]),
    )
    await sink.insert(PARTIALS, partials(partial(), other))
    ((*counts, average, p50, p95, p99, largest, visitors),) = await rows_of(
        sink, "SELECT * EXCEPT (hour, path, method, status_class, dimensions) FROM {db}.path_stats_hourly"
    )
    assert counts == [15, 3, (1 << 60) + 1000]
    assert average == pytest.approx(40 / 6)
    assert 3.0 <= p50 <= 4.0 and p95 == p99 == 20.0 and largest == 20.5
    assert visitors == 4
    assert await value_of(sink, "SELECT count() FROM {db}.path_stats_hourly_partials") == 2


async def test_bytes_of_partitions_that_fit_no_number_stay_at_its_limit(sink: ClickHouseSink) -> None:
    most = (1 << 63) - 1
    bytes_of = "SELECT bytes FROM {db}.path_stats_hourly"
    await sink.insert(PARTIALS, partials(*(partial(source_partition=i, bytes=most) for i in range(2))))
    assert await value_of(sink, bytes_of) == 2 * most
    await sink.insert(PARTIALS, partials(partial(source_partition=2, bytes=most)))
    assert await value_of(sink, bytes_of) == (1 << 64) - 1
    assert [path.bytes for path in await queries.top_paths(sink, 9)] == [3 * most]


async def test_a_key_without_response_times_has_none(sink: ClickHouseSink) -> None:
    await sink.insert(
        PARTIALS,
        partials(partial(timed=0, response_time_us=0, max_response_time_us=0, response_time=digest_state([]))),
    )
    found = await rows_of(
        sink,
        "SELECT requests, avg_response_time_ms, p50_response_time_ms, p95_response_time_ms, p99_response_time_ms, "
        "max_response_time_ms, unique_ips FROM {db}.path_stats_hourly",
    )
    assert found == [(10, None, None, None, None, None, 3)]


async def test_keys_that_look_alike_stay_apart(sink: ClickHouseSink) -> None:
    keys: list[dict[str, Any]] = [
        {"path": "/a|||b", "method": "GET"},
        {"path": "/a", "method": "b|||GET"},
        {"path": "/a\x00"},
        {"path": "/a"},
        {"path": "/a", "dimensions": [("t", "")]},
        {"path": "/a", "dimensions": [("t", "x")]},
        {"path": "/a", "dimensions": [("t", "x"), ("u", "y")]},
        {"path": "/a", "dimensions": [("t", "x,u:y")]},
        {"path": "/a", "status_class": "5xx"},
        {"path": "/a", "hour": DAY + HOUR_S},
        {"path": "/A"},
        {"path": "/ä"},
    ]
    for _ in range(2):
        await sink.insert(PARTIALS, partials(*(partial(**key) for key in keys)))
    assert await rows_of(sink, "SELECT count(), sum(requests) FROM {db}.path_stats_hourly") == [(12, 120)]


async def test_a_row_without_requests_withdraws_its_key(sink: ClickHouseSink) -> None:
    await sink.insert(PARTIALS, partials(partial(path="/users/1"), partial(path="/users/{id}")))
    withdrawn = partial(path="/users/1", version=version_of(2, 5), requests=0, visitors=uniq_state([]))
    await sink.insert(PARTIALS, partials(withdrawn))
    assert await rows_of(sink, "SELECT path FROM {db}.path_stats_hourly") == [("/users/{id}",)]


async def test_states_of_the_engine_and_of_python_merge(sink: ClickHouseSink) -> None:
    """A sum of unique_ips is wrong over hours; the states merge."""
    await sink.insert(PARTIALS, partials(partial(visitors=uniq_state([]), response_time=digest_state([(5.0, 3.0)]))))
    await sink.query(
        f"INSERT INTO {sink.qualified(PARTIALS)} SELECT {DAY + HOUR_S}, '/p', 'GET', '2xx', map(), 't', 0, 1, 4, 0, 0, "
        "4, 4, 1, uniqState(toString(number)), quantilesTDigestState(0.5, 0.95, 0.99)(toFloat32(number + 100)) "
        "FROM numbers(4)"
    )
    found = await rows_of(
        sink,
        "SELECT uniqMerge(visitors), quantilesTDigestMerge(0.5, 0.95, 0.99)(response_time) "
        "FROM {db}.path_stats_hourly_partials WHERE path = '/p'",
    )
    assert found[0][0] == 4
    assert 5 <= found[0][1][0] <= 100.5 and found[0][1][2] == pytest.approx(103)


async def test_a_filter_on_the_view_reaches_the_primary_key(sink: ClickHouseSink) -> None:
    many = [partial(path=f"/{i % 500}", hour=DAY + i // 500 * HOUR_S) for i in range(40_000)]
    await sink.insert(PARTIALS, partials(*many))
    plan = await rows_of(
        sink,
        "EXPLAIN indexes = 1 SELECT sum(requests) FROM {db}.path_stats_hourly "
        f"WHERE hour = toDateTime({DAY + 7 * HOUR_S}, 'UTC') AND path = '/250'",
    )
    text = "\n".join(line for (line,) in plan)
    granules = [line.strip() for line in text.splitlines() if "Granules" in line]
    assert granules, text
    assert int(granules[-1].split()[1].split("/")[0]) == 1, text


# -- progress and dead letters -----------------------------------------------------------------------------------------


async def test_complete_until_is_the_slowest_partitions_hour(sink: ClickHouseSink) -> None:
    for partition, (current, append, checked) in enumerate([(True, 5, 10.5), (False, 9.2, 10.6), (True, 10.7, 10.6)]):
        at = {"append_ms": int((DAY + append * HOUR_S) * 1000), "checked_ms": int((DAY + checked * HOUR_S) * 1000)}
        await sink.insert(PROGRESS, progress(partition=partition, partitions=3, current=current, **at))
    found = await queries.progress(sink)
    assert [(p.partition, p.complete_until) for p in found] == [(i, _at(9)) for i in range(3)]
    reached = await rows_of(sink, "SELECT partition, reached FROM {db}.stream_progress ORDER BY partition")
    assert [at for _, at in reached] == [_at(10.5), _at(9.2), _at(10.7)]


async def test_nothing_is_complete_while_a_partition_is_silent(sink: ClickHouseSink) -> None:
    await sink.insert(PROGRESS, progress(partition=0, partitions=2))
    assert [p.complete_until for p in await queries.progress(sink)] == [None]
    await sink.insert(PROGRESS, progress(partition=1, partitions=2))
    assert [p.complete_until for p in await queries.progress(sink)] == [_at(10), _at(10)]


async def test_streams_are_complete_each_for_itself(sink: ClickHouseSink) -> None:
    await sink.insert(PROGRESS, progress())
    await sink.insert(PROGRESS, progress(stream="ai", topic="ai.tasks.v1", current=False))
    found = {p.stream: p.complete_until for p in await queries.progress(sink)}
    assert found == {"traffic": _at(10), "ai": _at(5)}
    filtered = await rows_of(sink, "SELECT stream, complete_until FROM {db}.stream_progress WHERE stream = 'ai'")
    assert filtered == [("ai", _at(5))]


async def test_a_filter_on_a_partition_does_not_hide_the_slower_one(sink: ClickHouseSink) -> None:
    await sink.insert(PROGRESS, progress(partition=0, partitions=2))
    await sink.insert(PROGRESS, progress(partition=1, partitions=2, current=False))
    found = await rows_of(sink, "SELECT complete_until FROM {db}.stream_progress WHERE partition = 0")
    assert found == [(_at(5),)]


async def test_dead_letters_of_a_topic_made_again_stay_apart(sink: ClickHouseSink) -> None:
    await sink.insert("deadletters_rows", deadletter())
    await sink.insert("deadletters_rows", deadletter(reason="invalid"))
    await sink.insert("deadletters_rows", deadletter(append_ms=(DAY + 5) * 1000))
    found = await rows_of(sink, "SELECT reason, source_offset, appended_at FROM {db}.deadletters ORDER BY appended_at")
    assert found == [("invalid", 7, _at(0)), ("not_json", 7, _at(0) + timedelta(seconds=5))]


async def test_top_paths_merge_hours_and_methods(sink: ClickHouseSink) -> None:
    await sink.insert(
        PARTIALS,
        partials(
            partial(),
            partial(hour=DAY + HOUR_S, visitors=uniq_state([13, 14])),
            partial(method="POST", visitors=uniq_state([15])),
            partial(path="/q", requests=25, timed=0, response_time=digest_state([])),
            partial(path="/r", requests=1),
        ),
    )
    found = await queries.top_paths(sink, 2)
    assert [(p.path, p.requests, p.errors, p.bytes, p.unique_ips) for p in found] == [
        ("/p", 30, 3, 3000, 5),
        ("/q", 25, 1, 1000, 3),
    ]
    assert found[1].p50_response_time_ms is None and found[0].p99_response_time_ms == 4.0


# -- audio -------------------------------------------------------------------------------------------------------------


async def test_a_session_shows_its_newest_state_whatever_order_rows_came_in(sink: ClickHouseSink) -> None:
    closed = {
        "status": "closed",
        "closed_by": "client",
        "closed_ms": (DAY + 130) * 1000,
        "recording": "audio/s-1/recording.flac",
        "version": version_of(1, 200),
    }
    await sink.insert("audio_sessions_rows", audio_session())
    await sink.insert("audio_sessions_rows", audio_session(**closed))
    await sink.insert("audio_sessions_rows", audio_session(seqs=1, version=version_of(1, 50)))
    await sink.insert("audio_sessions_rows", audio_session(session_id="s-2", last_seq=None, seqs=0))
    found = await rows_of(
        sink,
        "SELECT session_id, status, seqs, last_seq, recording, opened_at, closed_at FROM {db}.audio_sessions "
        "ORDER BY session_id",
    )
    ended = _at(0) + timedelta(seconds=130)
    assert found == [
        ("s-1", "closed", 938, 937, "audio/s-1/recording.flac", _at(0), ended),
        ("s-2", "open", 0, None, "", _at(0), None),
    ]
    # A rewound topic's state is newer, however low its offset.
    await sink.insert("audio_sessions_rows", audio_session(version=version_of(2, 0)))
    assert await value_of(sink, "SELECT status FROM {db}.audio_sessions WHERE session_id = 's-1'") == "open"


async def test_segments_count_once_and_show_what_became_of_them(sink: ClickHouseSink) -> None:
    failed = {"status": "failed", "object_key": "", "attempts": 5, "error": "refused", "version": version_of(1, 99)}
    for part in (audio_segment(**failed), audio_segment(), audio_segment(), audio_segment(first_seq=469, last_seq=900)):
        await sink.insert("audio_segments_rows", part)
    found = await rows_of(
        sink, "SELECT first_seq, last_seq, status, attempts FROM {db}.audio_segments ORDER BY first_seq"
    )
    assert found == [(0, 468, "stored", 1), (469, 900, "stored", 1)]
    assert await value_of(sink, "SELECT sum(size_bytes) FROM {db}.audio_segments") == 2 * 1_921_068
    await sink.insert("audio_segments_rows", audio_segment(status="removed", version=version_of(1, 300)))
    assert await value_of(sink, "SELECT count() FROM {db}.audio_segments WHERE status = 'stored'") == 1
