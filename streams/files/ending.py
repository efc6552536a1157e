"""How jobs end, and how what their attempts have left in the bucket goes."""

from __future__ import annotations

from streams.files.effects import Abandon, Sweep
from streams.files.job import Job, What, Work
from streams.files.sizes import size_class
from streams.files.state import COURSE_TAG, ORIGIN_TAG, FilesState, key_of, mark, schedule
from streams.files.waiting import leave
from streams.runtime.burying import bury_origin
from topics.files import MAX_ERROR_CHARS, Status

_WHATS = {Status.COMPLETED: What.COMPLETED, Status.FAILED: What.FAILED, Status.CANCELLED: What.CANCELLED}


def fail(state: FilesState, job: Job, error_type: str, error: str) -> None:
    """A job has no result and will have none."""
    course, origin = job.course, job.origin
    course.error_type, course.error = error_type, error[:MAX_ERROR_CHARS]
    finish(state, job, Status.FAILED)
    bury_origin(state, job.id, origin, error_type, course.error, course.attempt)


def finish(state: FilesState, job: Job, status: Status) -> None:
    """A job is over."""
    course = job.course
    if course.work in (Work.RUNNING, Work.VERIFYING) and status is not Status.COMPLETED:
        state.effects.append(Abandon(job.id))
    leave(state, job)
    course.status, course.work, course.finished_ms = status, Work.OVER, state.clock_ms
    if status is Status.COMPLETED:
        course.progress = 100
        _count(state, job)
    state.finished[job.id] = None
    del state.open[job.id]
    state.totals[status.value] += 1
    state.totals["job_ms"] += state.clock_ms - course.accepted_ms
    mark(state, job, _WHATS[status])
    if job.losers():
        course.swept, course.sweep_ms = False, state.clock_ms + state.rules.sweep_after_ms
        state.effects.append(Sweep(job.id, last=False))
    schedule(state, job)


def sweep_again(state: FilesState, job: Job) -> None:
    """No URL of a job's attempts works any more; asked for until it was done."""
    job.course.sweep_ms = state.clock_ms + state.rules.sweep_after_ms
    state.effects.append(Sweep(job.id, last=True))
    state.dirty[job.id] = None
    schedule(state, job)


def swept(state: FilesState, job: Job) -> bool:
    """Nothing is left of a job's other attempts. False if that was known."""
    if job.course.swept or not job.course.status.final:
        return False
    job.course.swept = True
    state.totals["swept"] += 1
    state.dirty[job.id] = None
    schedule(state, job)
    return True


def forget_old(state: FilesState) -> None:
    """Let go of jobs that ended long ago and have left nothing: their ids may be used anew."""
    while state.finished:
        job = state.jobs[next(iter(state.finished))]
        if state.clock_ms < job.course.finished_ms + state.rules.remember_ms or not job.course.swept:
            return
        _forget(state, job)


def _forget(state: FilesState, job: Job) -> None:
    del state.jobs[job.id], state.finished[job.id]
    own = state.by_user[job.user]
    own.pop(job.id, None)
    if not own:
        del state.by_user[job.user]
    for kept in (state.dirty, state.new, state.shown):
        kept.pop(job.id, None)
    state.tombstones += [key_of(ORIGIN_TAG, job.id), key_of(COURSE_TAG, job.id)]


def _count(state: FilesState, job: Job) -> None:
    """How long the stages took, by the result's size."""
    course = job.course
    named = size_class(course.upload.size_bytes)
    state.totals[f"results_{named}"] += 1
    state.totals["result_bytes"] += course.upload.size_bytes
    for stage, took_ms in (
        ("prepare", course.prepare_ms),
        ("convert", course.convert_ms),
        ("verify", course.verify_ms),
    ):
        state.totals[f"{stage}_{named}_ms"] += took_ms
