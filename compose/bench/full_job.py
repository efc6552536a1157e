"""The full job, measured: a real worker, pinned to one core, from the first record it can read to all of it visible.

The topic is filled inside one open transaction while the worker does not run. The worker starts, joins its group and takes
its partitions over; reading committed records only, it sees an empty log. The clock starts just before the transaction is
committed, which shows all events at once, and stops when the group has committed the log's end and `path_stats_hourly`
counts every distinct event. So neither starting up nor filling is in the time, and nothing was fetched before it began.
Afterwards the raw rows are counted too: they were durable before the offsets were committed, so counting them late
favours nobody.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from compose.bench.cores import busy_s
from compose.bench.events import Filling, Positions, filled, make_topics, shape_of
from compose.bench.result import BenchFailed, Result
from compose.bench.worker import MeasuredWorker
from compose.clients import clickhouse
from compose.local.process import free_port
from compose.local.stack import LocalStack
from compose.settings import Settings
from compose.traffic_stream import traffic
from sinks.clickhouse.sink import ClickHouseSink
from topics.specs import changelog_name

DRAIN_S = 300.0
_POLL_S = 0.05
PARTITIONS = 4

Say = Callable[[str], None]


@dataclass(frozen=True)
class Load:
    """What goes in: so many events over so many paths, a share of them repeated."""

    events: int
    paths: int
    duplicates: float = 0.0
    seed: int = 1


def measure_full_job(stack: LocalStack, core: int, load: Load, say: Say, tuning: Mapping[str, Any]) -> Result:
    """Run the worker over `load` on a started stack that nothing else has used; `tuning` are settings of the worker.

    Raises BenchFailed when it does not finish or does not count every event once.
    """
    own = stack.settings(**tuning, partitions=PARTITIONS, worker_port=free_port(), log_level="warning")
    spec = traffic(own)
    make_topics(own.kafka_bootstrap, list(spec.topics))
    say(f"filling {spec.source} with {load.events:,} events over {load.paths:,} paths")
    shape = shape_of(load.paths, load.duplicates)
    with filled(own.kafka_bootstrap, spec.source, load.seed, load.events, shape) as filling:
        worker = MeasuredWorker(own, core, stack.data_dir / "worker.log")
        try:
            worker.wait_ready()
            say("the worker is ready; showing it the events")
            return asyncio.run(_measure(own, spec.group, spec.source, worker, core, filling, load))
        finally:
            worker.stop()


async def _measure(
    settings: Settings, group: str, source: str, worker: MeasuredWorker, core: int, filling: Filling, load: Load
) -> Result:
    positions = Positions(settings.kafka_bootstrap, group, source, settings.partitions)
    sink = clickhouse(settings)
    try:
        # One of each, so that no client's first connection is in the time.
        positions.lag()
        await _requests(sink)
        busy, cpu_s, started = busy_s(core), worker.cpu_s(), time.monotonic()
        filling.show()
        await _until(lambda: _drained(positions), worker)
        drained_s = time.monotonic() - started
        await _until(lambda: _counted(sink, filling.distinct), worker)
        seconds = time.monotonic() - started
        cpu_s = worker.cpu_s() - cpu_s
        others = max(0.0, busy_s(core) - busy - cpu_s) / seconds
        await _check_rows(sink, filling.distinct)
        return Result(
            system="sluiceway",
            job="full job",
            events=load.events,
            seconds=seconds,
            cpu_s=cpu_s,
            rss_peak_bytes=worker.rss_peak_bytes(),
            more={
                "drained_s": round(drained_s, 3),
                "core_share_of_others": round(others, 3),
                **_more(settings, worker, filling, load),
            },
        )
    finally:
        positions.close()
        await sink.close()


def _more(settings: Settings, worker: MeasuredWorker, filling: Filling, load: Load) -> dict[str, Any]:
    figures = worker.figures()
    on_disk = sum(
        path.stat().st_size
        for path in settings.data_dir.glob(f"kafka/data/{changelog_name('sluiceway-traffic')}-*/*.log")
    )
    return {
        "paths": load.paths,
        "duplicates": load.duplicates,
        "event_bytes": round(filling.value_bytes / load.events, 1),
        "ids": int(figures["ids"]),
        "bytes_per_id": round(figures["ids_bytes"] / max(1.0, figures["ids"]), 1),
        "changelog_bytes_per_event": round(worker.metric("sluiceway_changelog_bytes_total") / load.events, 1),
        "changelog_disk_bytes_per_event": round(on_disk / load.events, 1),
        "fold_s": round(worker.metric("sluiceway_fold_seconds_total"), 2),
        "seal_s": round(worker.metric("sluiceway_seal_seconds_total"), 2),
        "flushes": int(worker.metric("sluiceway_flush_seconds_count")),
    }


async def _until(done: Callable[[], Any], worker: MeasuredWorker) -> None:
    deadline = time.monotonic() + DRAIN_S
    while not await done():
        worker.check()
        if time.monotonic() > deadline:
            raise BenchFailed(f"not done within {DRAIN_S:.0f} s")
        await asyncio.sleep(_POLL_S)


async def _drained(positions: Positions) -> bool:
    return positions.lag() == 0


async def _requests(sink: ClickHouseSink) -> int:
    ((found,),) = await sink.query(f"SELECT sum(requests) FROM {sink.qualified('path_stats_hourly')}")
    return int(found)


async def _counted(sink: ClickHouseSink, expected: int) -> bool:
    found = await _requests(sink)
    if found > expected:
        raise BenchFailed(f"path_stats_hourly counts {found:,} requests of {expected:,} distinct events")
    return found == expected


async def _check_rows(sink: ClickHouseSink, expected: int) -> None:
    rows: Sequence[Any] = await sink.query(
        f"SELECT count(), uniqExact(event_id) FROM {sink.qualified('traffic_events')}"
    )
    if tuple(map(int, rows[0])) != (expected, expected):
        raise BenchFailed(f"traffic_events has {rows[0][0]} rows and {rows[0][1]} ids; expected {expected} of both")
