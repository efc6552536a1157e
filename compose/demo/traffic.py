"""The demo's traffic: an access log with duplicates, disorder and malformed lines through Kafka, a worker killed half-way,
and ClickHouse compared with the truth."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from compose.demo.truth import Found, Group, Truth, counts_agree, differences
from compose.kafka import traffic_publisher
from compose.local.generate import Shape, generate_log
from compose.logfile import LogFile, Occurrences, Survey, survey
from compose.replay import Replay, Window, window
from compose.settings import Settings
from sinks.clickhouse.queries import PathTotals, top_paths
from sinks.clickhouse.sink import ClickHouseSink
from streams.traffic.accesslog import parse_line
from streams.web.publisher import EventPublisher, Record

LINES = 60_000
DUPLICATE_SHARE = 0.10
#: Lines change places within this many: disorder as several log writers make it.
SHUFFLE_LINES = 500
BROKEN_RECORDS = 50
SETTLE_S = 90.0

Say = Callable[[str], None]


@dataclass
class Outcome:
    """What the demo saw, and what was wrong."""

    truth: Truth
    published: int = 0
    malformed_lines: int = 0
    left_out: int = 0
    dead_letters: int = 0
    replay_s: float = 0.0
    settled_s: float = 0.0
    top: Sequence[PathTotals] = ()
    problems: list[str] = field(default_factory=list)


class _Witness(EventPublisher):
    """Publishes, and lets the truth see every record that Kafka confirmed."""

    def __init__(self, inner: EventPublisher, truth: Truth) -> None:
        self._inner = inner
        self._truth = truth

    async def publish(self, records: Sequence[Record]) -> None:
        await self._inner.publish(records)
        for _, value in records:
            self._truth.add(value)

    async def reachable(self) -> bool:
        return await self._inner.reachable()


def write_log(source: Path | None, target: Path, seed: int) -> None:
    """The log to replay: `source` or a generated one, disordered, with malformed lines in it."""
    if source is not None:
        log = LogFile(str(source))
        lines = list(log.lines(lambda _: None))
        log.close()
    else:
        shape = Shape(end_ms=int(time.time() * 1000), span_ms=6 * 3_600_000, paths=300, clients=4_000)
        lines = list(generate_log(seed, LINES, shape))
    rng = random.Random(seed)
    for start in range(0, len(lines), SHUFFLE_LINES):
        block = lines[start : start + SHUFFLE_LINES]
        rng.shuffle(block)
        lines[start : start + SHUFFLE_LINES] = block
    for _ in range(max(10, len(lines) // 500)):
        lines.insert(
            rng.randrange(len(lines)), rng.choice([b"", b"upstream timed out", b"\x00\xfe garbage", b"GET / 200"])
        )
    target.write_bytes(b"\n".join(lines) + b"\n")


async def run_traffic(
    settings: Settings, sink: ClickHouseSink, source: Path | None, folder: Path, kill: Callable[[], str], say: Say
) -> Outcome:
    """Replay with faults, wait until ClickHouse agrees, compare."""
    path = folder / "demo.log"
    write_log(source, path, seed=1)
    outcome = Outcome(Truth())
    log = LogFile(str(path))
    found = survey(log.lines(lambda _: None), parse_line)
    taken = window(
        found,
        now_ms=int(time.time() * 1000),
        rebase=True,
        lateness_h=settings.traffic_lateness_h,
        early_h=settings.traffic_early_h,
    )
    publisher = traffic_publisher(settings, "demo")
    await publisher.start()
    try:
        await publisher.wait_connected(15.0)
        say(f"replaying {found.lines:,} lines of {source or 'a generated access log'}, a tenth of them twice")
        started = time.monotonic()
        await _replay_twice(_Witness(publisher, outcome.truth), log, found, taken, kill, say, outcome)
        await publisher.publish([(f"broken-{i}".encode(), b'{"event_id": %d, oops' % i) for i in range(BROKEN_RECORDS)])
        outcome.replay_s = time.monotonic() - started
    finally:
        log.close()
        await publisher.close()
    await _settle(sink, outcome, say)
    return outcome


async def _replay_twice(
    publisher: EventPublisher,
    log: LogFile,
    found: Survey,
    taken: Window,
    kill: Callable[[], str],
    say: Say,
    outcome: Outcome,
) -> None:
    """The whole log; beside its second half the first lines again, as a client that resends would."""
    lines = list(log.lines(lambda _: None))
    half = len(lines) // 2
    first = Replay(publisher, parse_line, taken, Occurrences(found.repeated))
    again = Replay(publisher, parse_line, taken, Occurrences(found.repeated))
    await first.run(iter(lines[:half]), rate=None, progress=lambda _: None)
    say(f"half-way: SIGKILL to {kill()}")
    repeated = islice(lines, int(len(lines) * DUPLICATE_SHARE))
    await asyncio.gather(
        first.run(iter(lines[half:]), rate=None, progress=lambda _: None),
        again.run(repeated, rate=None, progress=lambda _: None),
    )
    for error in filter(None, (first.report.error, again.report.error)):
        outcome.problems.append(f"replay: {error}")
    outcome.published = first.report.sent + again.report.sent
    outcome.malformed_lines = first.report.malformed
    outcome.left_out = first.report.too_old + first.report.too_new


async def _settle(sink: ClickHouseSink, outcome: Outcome, say: Say) -> None:
    """Poll ClickHouse until counts agree or the deadline passes, then compare everything."""
    say("waiting for ClickHouse to show every event once")
    started = time.monotonic()
    found: dict[Group, Found] = {}
    async for found in _polls(sink, started + SETTLE_S):
        outcome.dead_letters = await _dead_letters(sink)
        if counts_agree(outcome.truth, found) and outcome.dead_letters == BROKEN_RECORDS:
            break
    outcome.settled_s = time.monotonic() - started
    outcome.problems += differences(outcome.truth, found)
    if outcome.dead_letters != BROKEN_RECORDS:
        outcome.problems.append(f"{outcome.dead_letters} dead letters, not the {BROKEN_RECORDS} broken records sent")
    rows = await sink.query(f"SELECT count(), uniqExact(event_id) FROM {sink.qualified('traffic_events')}")
    if tuple(rows[0]) != (outcome.truth.events, outcome.truth.events):
        outcome.problems.append(
            f"traffic_events has {rows[0][0]} rows, {rows[0][1]} ids; expected {outcome.truth.events}"
        )
    outcome.top = await top_paths(sink, 10)


async def _polls(sink: ClickHouseSink, deadline: float) -> AsyncIterator[dict[Group, Found]]:
    while True:
        yield await _found(sink)
        if time.monotonic() > deadline:
            return
        await asyncio.sleep(0.5)


async def _found(sink: ClickHouseSink) -> dict[Group, Found]:
    rows: Iterable[Sequence[Any]] = await sink.query(
        "SELECT toUnixTimestamp(p.hour), p.path, sum(p.requests), sum(p.bytes), sum(p.errors), "
        "quantilesTDigestMerge(0.5, 0.95, 0.99)(p.response_time), uniqMerge(p.visitors) "
        f"FROM {sink.qualified('path_stats_hourly_partials')} AS p GROUP BY p.hour, p.path"
    )
    return {
        (int(hour), path): Found(int(n), int(size), int(e), list(q), int(u)) for hour, path, n, size, e, q, u in rows
    }


async def _dead_letters(sink: ClickHouseSink) -> int:
    rows = await sink.query(f"SELECT count() FROM {sink.qualified('deadletters')}")
    return int(rows[0][0])
