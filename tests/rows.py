"""Rows for tests of the ClickHouse tables: plain defaults, with whatever a test cares about given by name."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Any

import pyarrow as pa

from topics import rows

DAY_MS = 86_400_000
HOUR_S = 3_600
#: 2026-11-20 00:00 UTC.
DAY = 1_795_132_800
DAY_START_MS = DAY * 1000


def uniq_state(hashes: Sequence[int]) -> bytes:
    """ClickHouse's `uniq` state of these 32-bit hashes: skip degree 0, a count, the hashes."""
    assert len(hashes) < 128
    return bytes([0, len(hashes)]) + struct.pack(f"<{len(hashes)}I", *hashes)


def digest_state(centroids: Sequence[tuple[float, float]]) -> bytes:
    """ClickHouse's `quantilesTDigest` state of these (mean, weight)."""
    assert len(centroids) < 128
    return bytes([len(centroids)]) + b"".join(struct.pack("<ff", *c) for c in centroids)


def events(offsets: Sequence[int], **columns: Any) -> pa.Table:
    """One event an offset, all of one partition; `event_id` is made of the offset unless given."""
    made = []
    for offset in offsets:
        row = {
            "event_id": f"event-{offset}",
            "timestamp_ms": DAY_START_MS + offset,
            "method": "GET",
            "path": f"/p/{offset % 3}",
            "status": 200,
            "client_ip": "192.0.2.1",
            "response_time_ms": 12.5,
            "bytes": 100,
            "user_agent": None,
            "dimensions": [],
            "producer": "edge",
            "source_partition": 0,
            "source_offset": offset,
            "append_ms": DAY_START_MS + offset,
        }
        made.append({**row, **columns})
    return pa.Table.from_pylist(made, rows.TRAFFIC_EVENTS)


def partial(**columns: Any) -> dict[str, Any]:
    """One partial rollup: 10 requests, 4 of them timed at 1 to 4 ms, 3 visitors."""
    row: dict[str, Any] = {
        "hour": DAY,
        "path": "/p",
        "method": "GET",
        "status_class": "2xx",
        "dimensions": [],
        "source_topic": "traffic.events.v1",
        "source_partition": 0,
        "version": rows.version_of(1, 100),
        "requests": 10,
        "errors": 1,
        "bytes": 1000,
        "response_time_us": 10_000,
        "timed": 4,
        "max_response_time_us": 4_000,
        "visitors": uniq_state([11, 12, 13]),
        "response_time": digest_state([(1.0, 1.0), (2.0, 1.0), (3.0, 1.0), (4.0, 1.0)]),
    }
    return {**row, **columns}


def partials(*made: dict[str, Any]) -> pa.Table:
    """A table of partial rollups."""
    return pa.Table.from_pylist(list(made), rows.PATH_STATS_HOURLY)


def progress(**columns: Any) -> pa.Table:
    """One partition's progress: read to its end at 10:30."""
    row: dict[str, Any] = {
        "stream": "traffic",
        "topic": "traffic.events.v1",
        "partition": 0,
        "partitions": 1,
        "epoch": 1,
        "offset": 100,
        "end_offset": 100,
        "append_ms": (DAY + 5 * HOUR_S) * 1000,
        "current": True,
        "checked_ms": (DAY + 10 * HOUR_S + 1800) * 1000,
        "late": 0,
        "dead": 0,
    }
    return pa.Table.from_pylist([{**row, **columns}], rows.STREAM_PROGRESS)


def deadletter(**columns: Any) -> pa.Table:
    """One dead letter."""
    row: dict[str, Any] = {
        "stream": "traffic",
        "source_topic": "traffic.events.v1",
        "source_partition": 0,
        "source_offset": 7,
        "append_ms": DAY_START_MS,
        "reason": "not_json",
        "error": "no JSON",
        "producer": "edge",
        "size_bytes": 12,
        "object_key": "",
    }
    return pa.Table.from_pylist([{**row, **columns}], rows.DEADLETTERS)


def audio_session(**columns: Any) -> pa.Table:
    """One audio session that is open, with two minutes held."""
    row: dict[str, Any] = {
        "session_id": "s-1",
        "version": rows.version_of(1, 100),
        "user": "ann",
        "format": "pcm_s16le",
        "rate": 16_000,
        "channels": 1,
        "tier": "standard",
        "store": "flac",
        "status": "open",
        "closed_by": "",
        "error": "",
        "opened_ms": DAY_START_MS,
        "updated_ms": DAY_START_MS + 120_000,
        "closed_ms": None,
        "last_seq": 937,
        "seqs": 938,
        "gaps": 0,
        "duplicates": 0,
        "bytes": 3_842_048,
        "duration_ms": 120_064,
        "recording": "",
        "recording_bytes": 0,
        "md5": "",
        "source_partition": 0,
        "source_offset": 7,
    }
    return pa.Table.from_pylist([{**row, **columns}], rows.AUDIO_SESSIONS)


def audio_segment(**columns: Any) -> pa.Table:
    """One stored segment of a minute."""
    row: dict[str, Any] = {
        "session_id": "s-1",
        "first_seq": 0,
        "last_seq": 468,
        "version": rows.version_of(1, 100),
        "status": "stored",
        "object_key": "audio/s-1/segments/0000000000-0000000468.wav",
        "size_bytes": 1_921_068,
        "md5": "0" * 32,
        "duration_ms": 60_032,
        "gaps": 0,
        "attempts": 1,
        "error": "",
        "updated_ms": DAY_START_MS + 60_000,
        "source_partition": 0,
        "first_offset": 8,
        "last_offset": 476,
    }
    return pa.Table.from_pylist([{**row, **columns}], rows.AUDIO_SEGMENTS)


def file_job(**columns: Any) -> pa.Table:
    """One job that was accepted; `completed` or `failed` ones give what they came to by name."""
    row: dict[str, Any] = {
        "job_id": "j-1",
        "version": rows.version_of(1, 100),
        "user": "ann",
        "status": "accepted",
        "progress": 0,
        "error_type": "",
        "error": "",
        "format": "mp3",
        "quality": "medium",
        "source_key": "uploads/1/clip.webm",
        "source_url": "",
        "source_bytes": 0,
        "r2_key": "",
        "size_bytes": 0,
        "checksum": "",
        "duration_ms": 0,
        "parts": 0,
        "attempts": 0,
        "lost_attempts": 0,
        "prepare_ms": 0,
        "convert_ms": 0,
        "verify_ms": 0,
        "submitted_ms": DAY_START_MS,
        "accepted_ms": DAY_START_MS + 10,
        "started_ms": None,
        "finished_ms": None,
        "updated_ms": DAY_START_MS + 10,
        "producer": "",
        "source_partition": 0,
        "source_offset": 7,
    }
    return pa.Table.from_pylist([{**row, **columns}], rows.FILE_JOBS)
