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
import json
import os
import re
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from compose.bench.cores import busy_s, pinned
from compose.bench.events import Filling, Positions, filled, make_topics, shape_of
from compose.bench.result import Result
from compose.local.process import dying_with_parent, free_port
from compose.local.stack import LocalStack
from compose.settings import Settings
from compose.worker import clickhouse, traffic
from sinks.clickhouse.sink import ClickHouseSink
from topics.specs import changelog_name

READY_S = 60.0
DRAIN_S = 300.0
_POLL_S = 0.05

Say = Callable[[str], None]


class BenchFailed(RuntimeError):
    """A measurement that cannot be trusted: something did not start, did not finish, or counted wrongly."""


@dataclass(frozen=True)
class Load:
    """What goes in: so many events over so many paths, a share of them repeated."""

    events: int
    paths: int
    duplicates: float = 0.0
    seed: int = 1


class MeasuredWorker:
    """A `sluiceway worker` child process on one core."""

    def __init__(self, settings: Settings, core: int, log_path: Path) -> None:
        self.core = core
        self._url = f"http://127.0.0.1:{settings.worker_port}"
        argv = [sys.executable, "-m", "compose.cli", "worker", "--streams", "traffic", "--child"]
        command = dying_with_parent(pinned(core, argv), signal.SIGKILL)
        self._log_path = log_path
        with log_path.open("ab") as log:
            self._process = subprocess.Popen(
                command, env={**os.environ, **settings.environ()}, stdout=log, stderr=subprocess.STDOUT
            )

    def wait_ready(self) -> None:
        """Return once every partition is taken over. Raises BenchFailed."""
        deadline = time.monotonic() + READY_S
        while not self._ready():
            self.check()
            if time.monotonic() > deadline:
                raise BenchFailed(f"the worker was not ready within {READY_S:.0f} s; see {self._log_path}")
            time.sleep(0.1)

    def check(self) -> None:
        """Raise BenchFailed if the process has ended."""
        if self._process.poll() is not None:
            tail = self._log_path.read_text(errors="replace")[-3000:]
            raise BenchFailed(f"the worker ended with code {self._process.returncode}:\n{tail}")

    def cpu_s(self) -> float:
        """User and system seconds of all its threads so far."""
        times = psutil.Process(self._process.pid).cpu_times()
        return float(times.user + times.system)

    def rss_peak_bytes(self) -> int:
        """The most memory it ever had resident."""
        status = Path(f"/proc/{self._process.pid}/status").read_text()
        found = re.search(r"VmHWM:\s+(\d+) kB", status)
        assert found is not None
        return int(found[1]) * 1024

    def figures(self) -> dict[str, float]:
        """Its folds' own figures, added up over partitions."""
        total: dict[str, float] = {}
        for partition in json.loads(self._get("/status"))["partitions"]:
            for name, value in partition["figures"].items():
                total[name] = total.get(name, 0.0) + value
        return total

    def metric(self, name: str) -> float:
        """A metric's sum over all its labels."""
        lines = self._get("/metrics").decode().splitlines()
        return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith(name + "{"))

    def stop(self) -> None:
        """SIGTERM, SIGKILL when it does not drain."""
        self._process.terminate()
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _ready(self) -> bool:
        try:
            partitions = json.loads(self._get("/status"))["partitions"]
        except OSError:
            return False
        return bool(partitions) and all(partition["ready"] for partition in partitions)

    def _get(self, path: str) -> bytes:
        with urllib.request.urlopen(self._url + path, timeout=10) as answer:
            body: bytes = answer.read()
            return body


def measure_full_job(folder: Path, core: int, load: Load, say: Say, **settings: Any) -> Result:
    """Run the worker over `load` on a fresh stack under `folder`; `settings` override the defaults.

    Raises BenchFailed when it does not finish or does not count every event once.
    """
    with LocalStack.on_free_ports(folder) as stack:
        own = stack.settings(worker_port=free_port(), log_level="warning", **settings)
        spec = traffic(own)
        make_topics(own.kafka_bootstrap, list(spec.topics))
        say(f"filling {spec.source} with {load.events:,} events")
        with filled(
            own.kafka_bootstrap, spec.source, load.seed, load.events, shape_of(load.paths, load.duplicates)
        ) as filling:
            worker = MeasuredWorker(own, core, folder / "worker.log")
            try:
                worker.wait_ready()
                say("the worker is ready; showing it the events")
                return asyncio.run(_measure(own, spec.group, spec.source, worker, filling, load))
            finally:
                worker.stop()


async def _measure(
    settings: Settings, group: str, source: str, worker: MeasuredWorker, filling: Filling, load: Load
) -> Result:
    positions = Positions(settings.kafka_bootstrap, group, source, settings.partitions)
    sink = clickhouse(settings)
    try:
        # One of each, so that no client's first connection is in the time.
        positions.lag()
        await _requests(sink)
        busy, cpu_s, started = busy_s(worker.core), worker.cpu_s(), time.monotonic()
        filling.show()
        await _until(lambda: _drained(positions), worker)
        drained_s = time.monotonic() - started
        await _until(lambda: _counted(sink, filling.distinct), worker)
        seconds = time.monotonic() - started
        cpu_s = worker.cpu_s() - cpu_s
        others = max(0.0, busy_s(worker.core) - busy - cpu_s) / seconds
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
