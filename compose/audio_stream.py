"""The audio stream as the settings have it: its rules, its memory, and how segments and recordings are stored."""

from __future__ import annotations

from pathlib import Path

import psutil

from compose.audiostore import BucketAudioStore
from compose.kafka import kafka_access
from compose.settings import Settings
from sinks.backoff import Backoff
from sinks.errors import SinkMismatch, SinkRefused
from sinks.objects import Bucket
from streams.audio.agent import AudioOptions, audio_stream
from streams.audio.outside import OutsideLimits
from streams.runtime.worker import StreamSpec
from topics.audio import MAX_CHUNK_BYTES, Tier

_MB = 1 << 20


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
