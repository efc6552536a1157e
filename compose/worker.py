"""A stream's process: makes its clients from settings, runs it, and turns SIGTERM into a clean drain."""

from __future__ import annotations

import asyncio
import ctypes
import faulthandler
import gc
import os
import signal
import sys
import threading

from compose.clients import bucket, clickhouse
from compose.kafka import kafka_access
from compose.loop import run_loop
from compose.settings import Settings
from compose.stream_processes import stop_within_s
from sinks.clickhouse.sink import ClickHouseSink
from sinks.objects import Bucket
from streams.runtime.faults import Faults
from streams.runtime.partition import RuntimeLimits
from streams.runtime.transport import FetchLimits
from streams.runtime.worker import StreamSpec, StreamWorker, WorkerConfig

_MB = 1 << 20
_M_ARENA_MAX = -8


def stream_of(name: str, settings: Settings, objects: Bucket, sink: ClickHouseSink) -> StreamSpec:
    """A stream as the settings have it; made inside a running event loop."""
    # A process imports its own stream only: all of them take twice as long, and memory.
    match name:
        case "traffic":
            from compose.traffic_stream import traffic

            return traffic(settings)
        case "audio":
            from compose.audio_stream import audio

            return audio(settings, objects)
        case "ai":
            from compose.ai_stream import ai

            return ai(settings, sink)
        case "files":
            from compose.files_stream import files

            return files(settings, objects)
    raise ValueError(name)


def worker_config(settings: Settings, stream: str) -> WorkerConfig:
    """The runtime's part of the settings, for the worker of a stream."""
    return WorkerConfig(
        kafka=kafka_access(settings),
        data_dir=settings.data_dir,
        limits=RuntimeLimits(
            flush_interval_s=settings.ai_flush_interval_s if stream == "ai" else settings.flush_interval_s,
            flush_rows=settings.flush_rows,
            unwritten_bytes=(settings.unwritten_mb << 20) // settings.partitions,
            transaction_timeout_s=settings.transaction_timeout_s,
            accept_loss=settings.accept_loss,
        ),
        fetch=FetchLimits(session_timeout_ms=int(settings.session_timeout_s * 1000)),
        replication_factor=settings.replication_factor,
        deadletter_max_bytes=settings.max_record_bytes,
        status_host=settings.worker_host,
        status_port=settings.worker_port,
        flush_deadline_s=settings.flush_deadline_s,
        watchdog_s=settings.watchdog_s,
        rollup_interval_s=settings.rollup_interval_s,
    )


def run_stream(name: str, settings: Settings) -> None:
    """Run one stream in this process until SIGTERM or SIGINT."""
    # `kill -USR1` prints where every thread stands.
    faulthandler.register(signal.SIGUSR1)
    _share_arenas()
    # Records that are looked at one by one, as audio's are, are many small objects that die young and hold no cycles:
    # collecting at Python's default pace looks at everything a fold holds many times a second.
    gc.freeze()
    gc.set_threshold(20_000, 20, 100)
    # The threads that fetch, and that put segments, give way to the fold sooner: by default each may keep it waiting for 5 ms.
    sys.setswitchinterval(0.0005)
    run_loop(_run(name, settings))


def _share_arenas() -> None:
    """Let all threads allocate from two arenas, where the C library has that choice (glibc: M_ARENA_MAX of mallopt(3)).

    Left to itself each of the threads that put segments keeps an arena of its own, with what it once held.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_ARENA_MAX, 2)


async def _run(name: str, settings: Settings) -> None:
    stop = asyncio.Event()

    def on_signal() -> None:
        stop.set()
        limit = threading.Timer(stop_within_s(settings), _leave)
        limit.daemon = True
        limit.start()

    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, on_signal)
    await _serve(name, settings, stop)
    _leave()


def _leave() -> None:
    """End the process now: a thread of a client that waits for a server would hold an interpreter's orderly end back.

    Nothing is lost by it. What was not committed is restored by the next start.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


async def _serve(name: str, settings: Settings, stop: asyncio.Event) -> None:
    sink, objects = clickhouse(settings), bucket(settings)
    spec: StreamSpec | None = None
    try:
        migrated = asyncio.create_task(sink.migrate(settings.traffic_hot_days))
        stopped = asyncio.create_task(stop.wait())
        await asyncio.wait([migrated, stopped], return_when=asyncio.FIRST_COMPLETED)
        if not migrated.done():
            migrated.cancel()
            return
        migrated.result()
        faults = Faults(settings.faults, settings.data_dir / "faults")
        spec, config = stream_of(name, settings, objects, sink), worker_config(settings, name)
        await StreamWorker(spec, config, sink, objects, faults).run(stop)
    finally:
        if spec is not None:
            spec.close()
        await objects.close()
        await sink.close()
