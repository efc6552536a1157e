"""The file stream as the settings have it: what may be converted, how often, by whom, and where results go."""

from __future__ import annotations

import asyncio

from compose.converting import converter
from compose.filestore import BucketFileStore
from compose.settings import Settings
from sinks.backoff import Backoff
from sinks.objects import Bucket
from sinks.presign import Presigner
from streams.files.agent import FilesOptions, files_stream
from streams.files.outside import OutsideLimits, World
from streams.runtime.worker import StreamSpec
from topics.files import MAX_RECORD_BYTES

_MB = 1 << 20


def files(settings: Settings, objects: Bucket) -> StreamSpec:
    """The file stream for a worker to run; made inside a running event loop."""
    rules = {
        "concurrency": settings.files_concurrency,
        "per_user": settings.files_per_user,
        "waiting_max": settings.files_waiting,
        "retries_max": settings.files_retries,
        "sweep_after_ms": round(settings.files_sweep_s * 1000),
        "urls": settings.files_urls,
        "remember_ms": round(settings.files_remember_h * 3_600_000),
    }
    limits = OutsideLimits(
        source_bytes=settings.converter_source_mb * _MB,
        parts_above_bytes=settings.files_parts_above_mb * _MB,
        progress_s=settings.files_progress_s,
        backoff_s=Backoff(2.0, 60.0).delay_s,
    )
    store = BucketFileStore(
        objects,
        Presigner(objects),
        expires_s=settings.files_url_s,
        part_bytes=settings.files_part_mb * _MB,
        result_bytes=settings.converter_result_mb * _MB,
    )
    asked = converter(settings)
    return files_stream(
        FilesOptions(
            partitions=settings.partitions,
            retention_h=settings.files_retention_h,
            events_retention_h=settings.files_events_retention_h,
            deadletter_retention_h=settings.deadletter_retention_h,
            record_bytes_max=MAX_RECORD_BYTES,
            rules=rules,
            world=World(store, asked, asyncio.Semaphore(settings.converter_slots), limits),
            close=asked.close,
        )
    )
