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
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import psutil

from compose.ai_stream import ai
from compose.audiostore import BucketAudioStore
from compose.files_stream import files
from compose.kafka import kafka_access
from compose.loop import run_loop
from compose.settings import SettingError, Settings
from sinks.backoff import Backoff
from sinks.clickhouse.connection import Server
from sinks.clickhouse.sink import ClickHouseSink
from sinks.errors import SinkMismatch, SinkRefused
from sinks.objects import Bucket, BucketAddress
from sinks.presign import Presigner, PublicDomain
from streams.audio.agent import AudioOptions, audio_stream
from streams.audio.outside import OutsideLimits
from streams.runtime.faults import Faults
from streams.runtime.partition import RuntimeLimits
from streams.runtime.transport import FetchLimits
from streams.runtime.worker import StreamSpec, StreamWorker, WorkerConfig
from streams.traffic.agent import TrafficOptions, traffic_stream
from streams.traffic.spill import SpillFolder
from topics.audio import MAX_CHUNK_BYTES, Tier

_MB = 1 << 20
_M_ARENA_MAX = -8


def traffic(settings: Settings) -> StreamSpec:
    """The traffic stream as the settings have it."""
    rules = {
        "lateness_h": settings.traffic_lateness_h,
        "dedup_h": settings.traffic_dedup_h,
        "early_h": settings.traffic_early_h,
        "templates": settings.traffic_templates,
        "paths_max": settings.traffic_paths_max,
        "dimensions": settings.dimensions,
    }
    return traffic_stream(
        TrafficOptions(
            partitions=settings.partitions,
            retention_h=settings.traffic_retention_h,
            deadletter_retention_h=settings.deadletter_retention_h,
            max_record_bytes=settings.max_record_bytes,
            rules=rules,
            dedup_bytes=settings.dedup_memory_mb * _MB,
            spill=SpillFolder(settings.data_dir / "spill"),
        )
    )


def audio(settings: Settings, objects: Bucket) -> StreamSpec:
    """The audio stream as the settings have it."""
    rules = {
        "upload_after_ms": _ms(settings.audio_upload_after_s),
        "spread_ms": _ms(settings.audio_upload_after_s) // 2,
        "silence_ms": _ms(settings.audio_silence_s),
        "session_idle_ms": _ms(settings.audio_session_idle_s),
        "reorder_ms": _ms(settings.audio_reorder_s),
        "remember_ms": _ms(settings.audio_remember_h * 3600),
        "window_ms": {
            Tier.STANDARD: _ms(settings.audio_window_s),
            Tier.PREMIUM: _ms(settings.audio_premium_window_s),
        },
        "remove_segments": not settings.audio_keep_segments,
    }
    return audio_stream(
        AudioOptions(
            partitions=settings.partitions,
            retention_h=settings.audio_retention_h,
            events_retention_h=settings.audio_events_retention_h,
            deadletter_retention_h=settings.deadletter_retention_h,
            chunk_bytes_max=MAX_CHUNK_BYTES,
            rules=rules,
            memory_bytes=settings.audio_memory_mb * _MB or machine_memory() // 4,
            store=BucketAudioStore(objects),
            outside=OutsideLimits(
                attempts=settings.audio_attempts,
                attempt_s=settings.audio_attempt_s,
                part_bytes=settings.audio_part_mb * _MB,
                uploads=settings.audio_uploads,
                recordings=settings.audio_recordings,
                backoff_s=Backoff(0.5, 60.0).delay_s,
                refusals=(SinkRefused,),
                mismatches=(SinkMismatch,),
            ),
            client_settings=kafka_access(settings).aiokafka(),
        )
    )


def _ms(seconds: float) -> int:
    return round(seconds * 1000)


def machine_memory() -> int:
    """Bytes of memory that this process may count on: the machine's, or its container's if that is less."""
    total = int(psutil.virtual_memory().total)
    limit = Path("/sys/fs/cgroup/memory.max")
    text = limit.read_text().strip() if limit.exists() else "max"
    return min(total, int(text)) if text.isdigit() else total


STREAMS: dict[str, Callable[[Settings, Bucket, ClickHouseSink], StreamSpec]] = {
    "traffic": lambda settings, objects, sink: traffic(settings),
    "audio": lambda settings, objects, sink: audio(settings, objects),
    "ai": lambda settings, objects, sink: ai(settings, sink),
    "files": lambda settings, objects, sink: files(settings, objects),
}


def stream_names(text: str) -> list[str]:
    """The streams that a comma-separated list names. Raises SettingError for one that does not exist."""
    names = [name.strip() for name in text.split(",") if name.strip()]
    unknown = [name for name in names if name not in STREAMS]
    if unknown or not names:
        raise SettingError(f"no stream is called {', '.join(unknown) or repr(text)}; there are: {', '.join(STREAMS)}")
    return names


def settings_of_each(settings: Settings, streams: Sequence[str]) -> list[tuple[str, Settings]]:
    """Each stream with the settings of its own process: of a fixed `worker_port` the first has it, the next the next."""
    first = settings.worker_port
    ports = [first + number if first else 0 for number in range(len(streams))]
    return [(name, replace(settings, worker_port=port)) for name, port in zip(streams, ports, strict=True)]


def clickhouse(settings: Settings) -> ClickHouseSink:
    """The ClickHouse sink; made inside a running event loop."""
    return ClickHouseSink(
        Server(
            settings.clickhouse_url,
            user=settings.clickhouse_user,
            password=settings.clickhouse_password,
            database=settings.clickhouse_database,
        )
    )


def bucket(settings: Settings) -> Bucket:
    """The bucket of all objects; made inside a running event loop."""
    return Bucket(
        BucketAddress(
            settings.s3_endpoint,
            settings.s3_bucket,
            settings.s3_access_key,
            settings.s3_secret_key,
            settings.s3_region,
        )
    )


def presigner(settings: Settings, objects: Bucket) -> Presigner:
    """What signs URLs of the bucket; links go to the public domain where the settings name one."""
    domain = PublicDomain(settings.public_base_url, settings.public_link_secret) if settings.public_base_url else None
    return Presigner(objects, domain)


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


def stop_within_s(settings: Settings) -> float:
    """How long a stream's process takes to end after SIGTERM, whatever state it is in, at most."""
    return settings.flush_deadline_s + 1.6


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
        spec, config = STREAMS[name](settings, objects, sink), worker_config(settings, name)
        await StreamWorker(spec, config, sink, objects, faults).run(stop)
    finally:
        if spec is not None:
            spec.close()
        await objects.close()
        await sink.close()
