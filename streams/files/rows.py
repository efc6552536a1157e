"""The rows of jobs that ClickHouse shows, built where their state is sealed."""

from __future__ import annotations

from typing import Any

import pyarrow as pa

from streams.files.job import Job
from topics import rows as schemas
from topics.headers import header

Row = dict[str, Any]


def job_row(job: Job, partition: int) -> Row:
    """One job's whole state."""
    submit, course = job.submit, job.course
    return {
        "job_id": job.id,
        "version": course.version,
        "user": job.user,
        "status": course.status.value,
        "progress": course.progress,
        "error_type": course.error_type,
        "error": course.error,
        "format": submit.format,
        "quality": submit.quality or "medium",
        "source_key": submit.source.key or "",
        "source_url": (submit.source.url or "").partition("?")[0],
        "source_bytes": course.source_bytes,
        "r2_key": job.r2_key or "",
        "size_bytes": course.upload.size_bytes,
        "checksum": course.upload.checksum,
        "duration_ms": course.upload.duration_ms,
        "parts": len(course.upload.parts),
        "attempts": course.attempt,
        "lost_attempts": course.lost,
        "prepare_ms": course.prepare_ms,
        "convert_ms": course.convert_ms,
        "verify_ms": course.verify_ms,
        "submitted_ms": submit.submitted_ms,
        "accepted_ms": course.accepted_ms,
        "started_ms": course.started_ms or None,
        "finished_ms": course.finished_ms or None,
        "updated_ms": course.updated_ms,
        "producer": (header(job.headers, "producer") or b"").decode("utf-8", "replace")[:128],
        "source_partition": partition,
        "source_offset": job.origin.offset,
    }


def table(rows: dict[str, Row]) -> Any:
    """An Arrow table of rows."""
    return pa.Table.from_pylist(list(rows.values()), schemas.FILE_JOBS)
