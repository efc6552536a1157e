"""How soon an event is visible: from Kafka's acknowledgement to its count in `path_stats_hourly`, at a steady rate.

Marker events, each with a path of its own, go through among the others; ClickHouse is asked for them again and again. A
marker is visible when the first query that shows it has answered, so every figure is up to one poll too high.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from confluent_kafka import Producer

from compose.bench.events import make_topics, shape_of
from compose.bench.full_job import Say
from compose.bench.result import BenchFailed
from compose.bench.worker import MeasuredWorker
from compose.clients import clickhouse
from compose.figures import quantile
from compose.local.generate import generate_events
from compose.local.process import free_port
from compose.local.stack import LocalStack
from compose.settings import Settings
from compose.traffic_stream import traffic

MARKER_EVERY_S = 0.2
_PATHS = 300
_PREFIX = "/bench/marker/"
_STEP_S = 0.02
_POLL_S = 0.05
_LAST_S = 30.0
#: Markers of the first seconds are left out: connections open, code is met for the first time.
WARM_UP_S = 3.0


@dataclass
class Markers:
    """When each marker was acknowledged and when it was seen, monotonic seconds by path. Shared by two threads."""

    acknowledged: dict[str, float] = field(default_factory=dict)
    seen: dict[str, float] = field(default_factory=dict)
    sent: int = 0
    failed: list[str] = field(default_factory=list)

    def latencies(self, after: float) -> list[float]:
        """Seconds from acknowledged to seen, ascending, of markers acknowledged after `after`."""
        return sorted(max(0.0, self.seen[path] - at) for path, at in self.acknowledged.items() if at >= after)


def measure_latency(
    folder: Path, core: int, rate: int, seconds: float, say: Say, tuning: Mapping[str, Any]
) -> dict[str, Any]:
    """Send `rate` events a second for `seconds` and follow the markers among them; `tuning` are settings of the worker.

    Raises BenchFailed when a marker is lost.
    """
    with LocalStack.on_free_ports(folder / "latency") as stack:
        own = stack.settings(**tuning, worker_port=free_port(), log_level="warning")
        make_topics(own.kafka_bootstrap, list(traffic(own).topics))
        worker = MeasuredWorker(own, core, stack.data_dir / "worker.log")
        try:
            worker.wait_ready()
            say(f"sending {rate:,} events/s for {seconds:g} s")
            return _measure(own, worker, rate, seconds)
        finally:
            worker.stop()


def _measure(settings: Settings, worker: MeasuredWorker, rate: int, seconds: float) -> dict[str, Any]:
    markers, started, cpu_s = Markers(), time.monotonic(), worker.cpu_s()
    sender = threading.Thread(target=_send, args=(settings.kafka_bootstrap, rate, seconds, markers), daemon=True)
    sender.start()
    asyncio.run(_watch(settings, markers, sender, worker))
    if markers.failed:
        raise BenchFailed(f"Kafka did not take a marker: {markers.failed[0]}")
    found = markers.latencies(started + WARM_UP_S)
    if not found:
        raise BenchFailed(f"no marker was sent after the first {WARM_UP_S:g} s; measure for longer")
    return {
        "measurement": "latency",
        "events_per_s": rate,
        "seconds": seconds,
        "markers": len(found),
        "p50_s": round(quantile(found, 0.50), 3),
        "p99_s": round(quantile(found, 0.99), 3),
        "max_s": round(found[-1], 3),
        "cpu_share": round((worker.cpu_s() - cpu_s) / (time.monotonic() - started), 3),
    }


def _send(bootstrap: str, rate: int, seconds: float, markers: Markers) -> None:
    producer: Any = Producer(
        {"bootstrap.servers": bootstrap, "acks": "all", "partitioner": "murmur2_random", "compression.type": "lz4"}
    )
    events = generate_events(7, int(rate * seconds) + 1, shape_of(_PATHS, 0.0))
    topic = "traffic.events.v1"
    started, sent = time.monotonic(), 0
    while (now := time.monotonic()) < started + seconds:
        due = int((now - started) * rate)
        for key, value in itertools.islice(events, due - sent):
            producer.produce(topic, value, key)
        sent = due
        if now - started >= markers.sent * MARKER_EVERY_S:
            _send_marker(producer, topic, markers)
        producer.poll(_STEP_S)
    producer.flush()


def _send_marker(producer: Any, topic: str, markers: Markers) -> None:
    path = f"{_PREFIX}{markers.sent}"
    markers.sent += 1

    def acknowledged(error: Any, _: Any) -> None:
        if error is None:
            markers.acknowledged[path] = time.monotonic()
        else:
            markers.failed.append(str(error))

    event = {
        "event_id": f"marker-{markers.sent}",
        "timestamp_ms": int(time.time() * 1000),
        "method": "GET",
        "path": path,
        "status": 200,
        "client_ip": "10.0.0.1",
        "response_time_ms": 1.0,
        "bytes": 100,
    }
    producer.produce(topic, json.dumps(event).encode(), event["event_id"], on_delivery=acknowledged)


async def _watch(settings: Settings, markers: Markers, sender: threading.Thread, worker: MeasuredWorker) -> None:
    sink = clickhouse(settings)
    sql = f"SELECT path FROM {sink.qualified('path_stats_hourly')} WHERE startsWith(path, '{_PREFIX}')"
    try:
        for deadline in _deadlines(sender):
            for (path,) in await sink.query(sql):
                markers.seen.setdefault(path, time.monotonic())
            if not sender.is_alive() and len(markers.seen) == markers.sent:
                return
            worker.check()
            if time.monotonic() > deadline:
                raise BenchFailed(f"{markers.sent - len(markers.seen)} of {markers.sent} markers were never visible")
            await asyncio.sleep(_POLL_S)
    finally:
        await sink.close()


def _deadlines(sender: threading.Thread) -> Iterator[float]:
    """Endlessly the time to give up: a while after the sender is done."""
    ended: float | None = None
    while True:
        if ended is None and not sender.is_alive():
            ended = time.monotonic()
        yield float("inf") if ended is None else ended + _LAST_S
