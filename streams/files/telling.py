"""A job's events: told once as they happen, and told again, the same, to a reader that resumes."""

from __future__ import annotations

from typing import Any

from streams.files.job import Job, Mark, What
from topics.files import Stage
from topics.files_events import (
    AttemptDiscarded,
    AttemptStarted,
    JobAccepted,
    JobCancelled,
    JobCompleted,
    JobEvent,
    JobFailed,
    JobPrepared,
    JobProgressed,
    ResultUploaded,
)
from topics.rows import VERSION_OFFSET_BITS


def event_of(job: Job, mark: Mark, partition: int) -> JobEvent:
    """The event of a mark. That of an end is of the job as it ended."""
    course, submit = job.course, job.submit
    where: dict[str, Any] = {
        "job_id": job.id,
        "user": job.user,
        "at_ms": mark.at_ms,
        "progress": mark.progress,
        "source_partition": partition,
        "epoch": mark.version >> VERSION_OFFSET_BITS,
        "source_offset": mark.version & ((1 << VERSION_OFFSET_BITS) - 1),
        "number": mark.number,
    }
    attempt = {**where, "attempt": mark.attempt}
    match mark.what:
        case What.ACCEPTED:
            quality = submit.quality or "medium"
            return JobAccepted(**where, format=submit.format, quality=quality, submitted_ms=submit.submitted_ms)
        case What.STARTED:
            return AttemptStarted(**attempt)
        case What.PREPARED:
            return JobPrepared(**attempt)
        case What.PROGRESSED:
            return JobProgressed(**attempt, stage=Stage(mark.label), percent=mark.value)
        case What.UPLOADED:
            return ResultUploaded(**attempt, size_bytes=mark.value)
        case What.DISCARDED:
            return AttemptDiscarded(**attempt, error_type=mark.label, retry_after_ms=mark.value)
        case What.COMPLETED:
            made = course.upload
            return JobCompleted(
                **where,
                r2_key=job.r2_key or "",
                size_bytes=made.size_bytes,
                checksum=made.checksum,
                duration_ms=made.duration_ms,
            )
        case What.FAILED:
            return JobFailed(**where, error_type=course.error_type, error=course.error)
        case What.CANCELLED:
            return JobCancelled(**where)


def history(job: Job, partition: int) -> list[JobEvent]:
    """A job's events in their order; of the progress of an attempt the newest."""
    return [event_of(job, mark, partition) for mark in job.course.marks]
