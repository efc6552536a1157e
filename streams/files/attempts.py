"""What comes of attempts: how far they are, what they have uploaded, and what becomes of a job whose attempt failed."""

from __future__ import annotations

from streams.files.effects import Verify
from streams.files.ending import fail, finish
from streams.files.job import PREPARED, UPLOADED, Job, Upload, What, Work, progress_of
from streams.files.state import FilesState, mark, schedule
from streams.files.waiting import leave, wait
from topics.files import AttemptFailed, Converted, OfAttempt, Prepared, Progressed, Status, Verified


def take_of_attempt(state: FilesState, job: Job, found: OfAttempt) -> bool:
    """Fold what an attempt says. False when it changes nothing: it is not the one under way, or said it before."""
    course = job.course
    if not job.is_at(found.term, found.attempt):
        return False
    if isinstance(found, AttemptFailed):
        if course.work not in (Work.RUNNING, Work.VERIFYING):
            return False
        state.totals[_failed_at(job, found.error_type)] += 1
        _failed(state, job, found)
    elif isinstance(found, Verified):
        if course.work is not Work.VERIFYING:
            return False
        course.verify_ms = found.verify_ms
        state.totals["verifications_passed"] += 1
        finish(state, job, Status.COMPLETED)
    elif course.work is not Work.RUNNING:
        return False
    elif isinstance(found, Prepared):
        course.status, course.progress = Status.PREPARED, PREPARED
        course.source_bytes, course.upload_id, course.prepare_ms = found.source_bytes, found.upload_id, found.prepare_ms
        state.totals["presigns_passed"] += 1
        mark(state, job, What.PREPARED)
    elif isinstance(found, Progressed):
        _progressed(state, job, found)
    else:
        _converted(state, job, found)
    return True


def _progressed(state: FilesState, job: Job, found: Progressed) -> None:
    course = job.course
    progress = max(course.progress, progress_of(found.stage, found.percent))
    if course.status is Status.CONVERTING and progress == course.progress:
        return
    course.status, course.progress = Status.CONVERTING, progress
    mark(state, job, What.PROGRESSED, found.percent, found.stage)


def _converted(state: FilesState, job: Job, found: Converted) -> None:
    """From here on the result lies in the bucket, and the attempt outlives its worker."""
    course = job.course
    leave(state, job)
    course.work, course.status, course.progress = Work.VERIFYING, Status.VERIFYING, UPLOADED
    course.upload = Upload(found.size_bytes, found.checksum, found.duration_ms, found.parts)
    course.convert_ms = found.convert_ms
    state.totals["uploads_passed"] += 1
    state.effects.append(Verify(job.id, course.term, course.attempt))
    mark(state, job, What.UPLOADED, found.size_bytes)


def _failed_at(job: Job, error_type: str) -> str:
    """The total that an attempt's failure counts in: by the step that it met."""
    course = job.course
    if course.work is Work.VERIFYING:
        return "verifications_failed"
    if error_type.startswith("source"):
        return "sources_failed"
    if course.status is Status.ACCEPTED:
        return "presigns_failed"
    return "uploads_failed" if error_type.startswith("upload") else "conversions_failed"


def _failed(state: FilesState, job: Job, found: AttemptFailed) -> None:
    """Another attempt after a pause, unless none makes sense or there were enough."""
    course = job.course
    if found.retry_after_ms is None or course.retries >= state.rules.retries_max:
        fail(state, job, found.error_type, found.error)
        return
    leave(state, job)
    course.retries += 1
    course.work, course.next_ms = Work.PAUSED, state.clock_ms + max(1, found.retry_after_ms)
    state.totals["retries"] += 1
    _discard(state, job, found.error_type, found.retry_after_ms)
    schedule(state, job)


def begin_again(state: FilesState, job: Job) -> None:
    """A paused job's next attempt is due."""
    wait(state, job)
    state.dirty[job.id] = None
    schedule(state, job)


def lose(state: FilesState, job: Job) -> None:
    """The owner that had an attempt under way is gone, and with it what it knew."""
    course = job.course
    course.lost += 1
    state.totals["lost_attempts"] += 1
    if course.lost > state.rules.lost_max:
        fail(state, job, "lost_too_often", f"its worker died {course.lost} times while it was converted")
        return
    leave(state, job)
    _discard(state, job, "lost", 0)
    wait(state, job)


def _discard(state: FilesState, job: Job, error_type: str, retry_after_ms: int) -> None:
    course = job.course
    course.status, course.progress, course.upload = Status.ACCEPTED, 0, Upload()
    mark(state, job, What.DISCARDED, retry_after_ms, error_type)
