"""Who waits for a slot, and whose turn it is: users take turns, and another attempt of a job goes before any first one."""

from __future__ import annotations

from streams.files.effects import Convert
from streams.files.job import STARTED, Job, What, Work
from streams.files.state import FilesState, mark


def wait(state: FilesState, job: Job) -> None:
    """A job waits for its next attempt."""
    job.course.work = Work.WAITING
    if job.course.attempt:
        state.turns += 1
        job.course.turn = state.turns
        state.first[job.id] = None
    else:
        state.waiting.setdefault(job.user, {})[job.id] = None


def leave(state: FilesState, job: Job) -> None:
    """A job waits no longer, and its attempt, if it had one, has no slot any more."""
    if job.course.work is Work.RUNNING:
        state.running[job.user] -= 1
        if not state.running[job.user]:
            del state.running[job.user]
    state.first.pop(job.id, None)
    own = state.waiting.get(job.user, {})
    own.pop(job.id, None)
    if not own:
        state.waiting.pop(job.user, None)


def grant(state: FilesState) -> None:
    """Begin attempts as far as there are slots."""
    while state.seated and state.running.total() < state.rules.slots:
        job = _next(state)
        if job is None:
            return
        _start(state, job)


def _next(state: FilesState) -> Job | None:
    """The first in turn: of the user with the fewest attempts under way, and of those the one who waits longest."""
    if state.first:
        return state.jobs[next(iter(state.first))]
    free = [user for user in state.waiting if state.running[user] < state.rules.per_user]
    jobs = (state.jobs[next(iter(state.waiting[user]))] for user in free)
    return min(jobs, key=lambda job: (state.running[job.user], job.origin.accepted_version), default=None)


def _start(state: FilesState, job: Job) -> None:
    course = job.course
    leave(state, job)
    state.running[job.user] += 1
    course.work, course.attempt, course.term = Work.RUNNING, course.attempt + 1, state.term
    course.begun = [*course.begun, (course.term, course.attempt)]
    course.started_ms = course.started_ms or state.clock_ms
    course.progress, course.upload_id = STARTED, None
    state.totals["attempts"] += 1
    state.effects.append(Convert(job.id, course.term, course.attempt))
    mark(state, job, What.STARTED)
