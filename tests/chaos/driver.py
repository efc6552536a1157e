"""A chaos run: real workers fold a seeded stream while something breaks, then ClickHouse must equal the truth exactly.

Merges are stopped from the first insert on, so what is counted is every row that was ever written; at the end they run,
and everything is counted again.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import clickhouse_connect

from compose.local.generate import Shape, generate_events
from compose.local.process import free_port
from compose.local.stack import LocalStack
from compose.settings import Settings
from sinks.clickhouse.connection import Connection, Server
from sinks.clickhouse.schema import migrate, shipped
from tests.chaos.source import Feeder, Source
from tests.chaos.truth import HOUR_MS, Key, Record, Sums, Truth, renamed
from tests.chaos.workers import CHILD, Worker
from tests.warehouse import new_database

PARTITIONS = 4
#: Quick to notice a lost member, patient enough for two busy cores; a lone worker that is started again can be quicker.
SESSION_S, ALONE_S = 2.0, 1.0
DRAIN_S = 90.0


#: The range of made-up events: some hours, all within the lateness.
SPAN_MS = 3 * HOUR_MS


def made_up(seed: int, count: int, duplicates: float = 0.1) -> list[Record]:
    """`count` records of the last three hours, a tenth of them repeated."""
    shape = Shape(end_ms=int(time.time() * 1000), span_ms=SPAN_MS, duplicates=duplicates, disorder_ms=60_000)
    return [Record(key, value) for key, value in generate_events(seed, count, shape)]


@dataclass(frozen=True)
class Found:
    """What ClickHouse says: sums by key, rows of `traffic_events`, distinct ids among them."""

    stats: Mapping[Key, Sums]
    rows: int
    ids: int


@dataclass
class Run:
    """One chaos run: a source topic and a database of its own, any number of workers, and the clock of its figures."""

    stack: LocalStack
    folder: Path
    settings: Settings
    source: Source
    warehouse: Any
    command: Sequence[str]
    workers: list[Worker] = field(default_factory=list)
    started: float = field(default_factory=time.monotonic)

    def worker(self, *, command: Sequence[str] = (), revive: bool = True, **settings: Any) -> Worker:
        """Start a further worker, with settings of its own."""
        name = f"worker-{len(self.workers)}"
        own = replace(self.settings, data_dir=self.folder / name, worker_port=free_port(), **settings)
        made = Worker(name, own, command or self.command, revive)
        self.workers.append(made)
        return made.start()

    def feeder(self, records: Sequence[Record], rate_s: float, **how: Any) -> Feeder:
        """Produces in the background, `rate_s` records a second."""
        return Feeder(self.source.bootstrap, records, rate_s, **how)

    def until(self, true: Callable[[], bool], what: str, deadline_s: float = DRAIN_S) -> float:
        """Poll until `true`, starting dead workers again; seconds waited. Fails with what the workers logged."""
        started = time.monotonic()
        while not true():
            for worker in self.workers:
                worker.look()
            assert time.monotonic() - started < deadline_s, f"not within {deadline_s:.0f} s: {what}\n{self.told()}"
            time.sleep(0.05)
        return time.monotonic() - started

    def told(self) -> str:
        """The end of every worker's log, and how far the stream is."""
        logs = [f"--- {w.name}, exit codes {w.codes}, running {w.running}\n{w.log()}" for w in self.workers]
        return "\n".join([*logs, f"ends {self.source.ends()}, committed {self.source.committed()}, {self.progress()}"])

    # -- what there is to see -----------------------------------------------------------------------------------

    def rows(self, sql: str) -> list[Any]:
        """The rows of a query in the run's database."""
        return list(self.warehouse.query(sql).result_rows)

    def progress(self) -> dict[int, tuple[int, int, bool]]:
        """(epoch, offset, current) of each partition, as `stream_progress` has it."""
        found = self.rows("SELECT partition, epoch, offset, current FROM stream_progress")
        return {int(p): (int(epoch), int(offset), bool(current)) for p, epoch, offset, current in found}

    def drained(self, epoch: int = 1) -> bool:
        """Whether `stream_progress` promises everything up to the topic's end, in this epoch or a later one."""
        progress, ends = self.progress(), self.source.ends()
        reached = {p: (at_epoch, offset) for p, (at_epoch, offset, current) in progress.items() if current}
        return all(reached.get(p, (0, 0)) >= (epoch, end) for p, end in enumerate(ends))

    def found(self) -> Found:
        """All that is compared."""
        stats = {
            Key(int(hour), path, method, status_class): Sums(int(requests), int(errors), int(size))
            for hour, path, method, status_class, requests, errors, size in self.rows(
                "SELECT intDiv(toUnixTimestamp(hour), 3600), path, method, status_class, requests, errors, bytes "
                "FROM path_stats_hourly"
            )
        }
        ((rows, ids),) = self.rows("SELECT count(), uniqExact(event_id) FROM traffic_events")
        return Found(stats, int(rows), int(ids))

    # -- the verdict --------------------------------------------------------------------------------------------

    def wait_drained(self, epoch: int = 1, deadline_s: float = DRAIN_S) -> float:
        """Wait until everything produced is promised; seconds waited."""
        return self.until(lambda: self.drained(epoch), f"drained in epoch {epoch}", deadline_s)

    def assert_exact(self, truth: Truth, name: Callable[[str], str] = str) -> None:
        """Equal sums for every key, every id once; with merges stopped, and again after they ran.

        Paths are compared under the names that `name` gives them.
        """
        unmerged = differences(truth, self.found(), name)
        assert not unmerged, _told("with merges stopped", unmerged)
        self.merge()
        merged = differences(truth, self.found(), name)
        assert not merged, _told("after merges", merged)

    def assert_committed(self) -> None:
        """The group's offsets are the topic's ends."""
        assert self.source.committed() == self.source.ends()

    def merge(self) -> None:
        """Let ClickHouse merge all parts of all tables."""
        for table in self._tables():
            self.warehouse.command(f"SYSTEM START MERGES {self.settings.clickhouse_database}.{table}")
            self.warehouse.command(f"OPTIMIZE TABLE {table} FINAL")

    def stop_merges(self) -> None:
        """Keep every part as it was inserted."""
        for table in self._tables():
            self.warehouse.command(f"SYSTEM STOP MERGES {self.settings.clickhouse_database}.{table}")

    def report(self, name: str, **figures: Any) -> None:
        """Print the run's figures as one line."""
        codes = sorted(code for worker in self.workers for code in worker.codes)
        told = {**figures, "exits": codes, "seconds": round(time.monotonic() - self.started, 1), "differences": 0}
        print(f"chaos: {name}: " + ", ".join(f"{key}={value}" for key, value in told.items()))

    def _tables(self) -> list[str]:
        database = self.settings.clickhouse_database
        found = self.rows(f"SELECT name FROM system.tables WHERE database = '{database}' AND engine LIKE '%MergeTree'")
        return [name for (name,) in found]


def differences(truth: Truth, found: Found, name: Callable[[str], str] = str) -> list[str]:
    """What is not as it must be, one line each; empty when all is exact."""
    want, have = renamed(truth.stats, name), renamed(found.stats, name)
    keys = [*want, *(key for key in have if key not in want)]
    wrong = [f"{key}: {have.get(key)} instead of {want.get(key)}" for key in keys if have.get(key) != want.get(key)]
    if found.ids != len(truth.ids):
        wrong.append(f"traffic_events: {found.ids} distinct ids instead of {len(truth.ids)}")
    if found.rows != found.ids:
        wrong.append(f"traffic_events: {found.rows} rows for {found.ids} ids")
    return wrong


def _told(when: str, wrong: list[str]) -> str:
    return f"{len(wrong)} differences {when}:\n" + "\n".join(wrong[:20])


@contextmanager
def chaos_run(stack: LocalStack, folder: Path, command: Sequence[str] = CHILD, **settings: Any) -> Iterator[Run]:
    """A run on an empty topic and an empty database, with merges stopped, whose workers are started by `command`.

    Ends every worker, and deletes both.
    """
    for server in stack.servers:
        server.start()
    own = stack.settings(**{"clickhouse_database": new_database(), **_QUICK, **settings})
    source = Source(stack.kafka.bootstrap, PARTITIONS)
    source.clear()
    source.create()
    connection = Connection(Server(stack.clickhouse.url, own.clickhouse_database))
    migrate(connection, list(shipped()))
    connection.close()
    warehouse = clickhouse_connect.get_client(
        host="127.0.0.1",
        port=stack.clickhouse.port,
        database=own.clickhouse_database,
        autogenerate_session_id=False,
    )
    run = Run(stack, folder, own, source, warehouse, command)
    try:
        run.stop_merges()
        yield run
    finally:
        for worker in run.workers:
            worker.leave()
        for worker in run.workers:
            worker.kill(after_s=5.0)
        for server in stack.servers:
            server.start()
        warehouse.command(f"DROP DATABASE {own.clickhouse_database}")
        warehouse.close()
        source.clear()
        source.close()


_QUICK: dict[str, Any] = {
    "partitions": PARTITIONS,
    "session_timeout_s": SESSION_S,
    "flush_interval_s": 0.1,
    "rollup_interval_s": 0.2,
    "watchdog_s": 30.0,
    "traffic_hot_days": 30,
}
