"""The file fold of one partition: submitted jobs become attempts of a converter, and what they upload the jobs' results.

Pure: what becomes of a record follows from the log before it and the rules. The clock is the highest append time so far;
every deadline is looked at before the record that moves the clock past it, so that how batches are split decides nothing.

Attempts are asked for by effects, once the flush that granted them has committed, and what came of one is a record. Rules
that make each job end once, and its result be one whole object:

1. The first final record of a job wins; whatever comes later changes nothing.
2. Of a job only the attempt under way is heard: (term, attempt) of a record must be its own. Its result has a key of its own
   too, so that a zombie that uploads late writes beside the winner, which the job's end names; the rest is swept.
3. A new owner begins nothing before it has folded its own `owner` record, which it wrote after fencing the earlier ones: by
   then all outcomes that they have committed are folded, and the conversions still under way are lost. What was uploaded
   is not: verifying can be done by anybody, again and again.
"""

from __future__ import annotations

from collections import Counter
from functools import lru_cache

import msgspec

from streams.files.attempts import begin_again, lose, take_of_attempt
from streams.files.effects import Abandon, Convert, Effect, Sweep, Verify, Wake
from streams.files.ending import fail, finish, forget_old, sweep_again, swept
from streams.files.job import Course, Job, Origin, What, Work, encode
from streams.files.rows import job_row
from streams.files.state import (
    COURSE_TAG,
    ORIGIN_TAG,
    STATE_KEY,
    ChangelogRecord,
    FilesState,
    SavedState,
    Sealed,
    first_due,
    key_of,
    mark,
)
from streams.files.waiting import grant, wait
from streams.runtime.burying import bury, bury_unreadable, send_on
from topics import files
from topics.files import Status
from topics.malformed import Malformed
from topics.partitioning import partition_of
from topics.records import Batch, Flush, Record

#: The shortest time that is asked to be woken after: the broker's clock may lag behind.
WAKE_MIN_MS = 20

_partition_of = lru_cache(maxsize=65_536)(partition_of)


def step(state: FilesState, batch: Batch) -> FilesState:
    """Fold one batch; total. What it adds is kept open in the state until `seal`."""
    bury_unreadable(state, batch, batch.unreadable)
    for record in batch.records():
        state.offset, state.number = record.offset, 0
        state.clock_ms = max(state.clock_ms, record.append_ms)
        _do_what_is_due(state)
        _take(state, record)
        _do_what_is_due(state)
        grant(state)
    return state


def _take(state: FilesState, record: Record) -> None:
    found = files.decode(record.key, record.value, record.headers)
    if isinstance(found, Malformed):
        bury(state, record, found.reason, found.error)
    elif isinstance(found, files.Idle):
        state.totals["idle"] += 1
    elif isinstance(found, files.Owner):
        _seat(state, found.term)
    elif (home := _partition_of(record.key or b"", state.rules.partitions)) != state.rules.partition:
        send_on(state, record, home)
    elif isinstance(found, files.Submit):
        _submit(state, record, found)
    elif (job := state.jobs.get(found.job_id)) is not None:
        if not _heard(state, job, found):
            state.totals["stale"] += 1
    elif isinstance(found, files.Cancel):
        bury(state, record, "unknown_job", f"there is no job {found.job_id}, or it is long over")
    else:
        state.totals["stale"] += 1


def _heard(state: FilesState, job: Job, found: files.Cancel | files.OfAttempt | files.Swept) -> bool:
    """Fold a record of a known job. False when it changes nothing: it came too late."""
    if isinstance(found, files.Swept):
        return swept(state, job)
    if job.course.status.final:
        return False
    if isinstance(found, files.Cancel):
        finish(state, job, Status.CANCELLED)
        return True
    return take_of_attempt(state, job, found)


def _submit(state: FilesState, record: Record, submit: files.Submit) -> None:
    known = state.jobs.get(submit.job_id)
    if known is None:
        _accept(state, record, submit)
    elif msgspec.structs.replace(submit, submitted_ms=known.submit.submitted_ms) == known.submit:
        state.totals["duplicate"] += 1
    else:
        bury(state, record, "conflict", f"job {known.id} was submitted with other content before")


def _accept(state: FilesState, record: Record, submit: files.Submit) -> None:
    headers = list(record.headers)
    origin = Origin(record.value or b"", headers, record.offset, record.append_ms, state.event_version)
    job = Job(origin, submit, Course(accepted_ms=state.clock_ms))
    state.jobs[job.id] = job
    state.by_user[job.user][job.id] = None
    state.open[job.id] = state.new[job.id] = None
    state.totals["submitted"] += 1
    mark(state, job, What.ACCEPTED)
    refusal = _refusal(state, job)
    if refusal is None:
        wait(state, job)
    else:
        fail(state, job, *refusal)


def _refusal(state: FilesState, job: Job) -> tuple[str, str] | None:
    plan = job.plan
    if isinstance(plan, Malformed):
        return plan.reason, plan.error
    if job.submit.source.url is not None and not state.rules.urls:
        return "url_not_allowed", "sources by URL are not allowed here: upload the file, and name its key"
    if len(state.waiting.get(job.user, ())) >= state.rules.waiting_max:
        return "queue_full", f"{state.rules.waiting_max} jobs of this user wait already: submit it again later"
    return None


def _seat(state: FilesState, term: int) -> None:
    """A new owner: what earlier ones had under way, and had no word of, is lost. Of a later term than this process's own it
    is nobody's word, or this process is fenced and commits nothing more."""
    if term <= state.term or 0 <= state.seat < term:
        state.totals["stale"] += 1
        return
    state.term = term
    for job in [state.jobs[job_id] for job_id in state.open]:
        if job.course.work is Work.RUNNING:
            lose(state, job)
        elif job.course.work is Work.VERIFYING and state.seated:
            state.effects.append(Verify(job.id, job.course.term, job.course.attempt))


def _do_what_is_due(state: FilesState) -> None:
    if not state.seated:
        return
    while (job := first_due(state)) is not None and job.due_ms <= state.clock_ms:
        job.due_ms = 0
        (begin_again if job.course.work is Work.PAUSED else sweep_again)(state, job)
    forget_old(state)


# -- flush -------------------------------------------------------------------------------------------------------


def seal(state: FilesState, position: int, version: int) -> Flush:
    """Encode what was folded since the last seal. `position` is the next offset to fold, `version` that of the rows."""
    changelog: list[ChangelogRecord] = [(key, None) for key in state.tombstones]
    changelog += [(key_of(ORIGIN_TAG, job_id), encode(state.jobs[job_id].origin)) for job_id in state.new]
    for job_id in state.dirty:
        course = state.jobs[job_id].course
        course.version = version
        changelog.append((key_of(COURSE_TAG, job_id), encode(course)))
    totals = Counter(state.totals)
    saved = SavedState(state.clock_ms, state.term, state.materialised, state.turns, dict(totals))
    changelog.append((STATE_KEY, msgspec.msgpack.encode(saved)))
    rows = {job_id: job_row(state.jobs[job_id], state.rules.partition) for job_id in state.shown}
    flush = Flush(
        position,
        changelog=changelog,
        emits=state.emits,
        dead=state.dead,
        effects=[effect for effect in state.effects if wanted(state, effect)] + _wake(state),
        token=Sealed(rows, state.clock_ms, totals),
    )
    state.new, state.dirty, state.shown, state.tombstones = {}, {}, {}, []
    state.emits, state.dead, state.effects = [], [], []
    return flush


def _wake(state: FilesState) -> list[Effect]:
    job = first_due(state)
    return [] if job is None else [Wake(max(WAKE_MIN_MS, job.due_ms - state.clock_ms))]


def wanted(state: FilesState, effect: Effect) -> bool:
    """Whether an effect is still to be done: what was folded since may have ended it."""
    if isinstance(effect, (Wake, Abandon)):
        return True
    job = state.jobs.get(effect.job_id)
    if job is None:
        return False
    if isinstance(effect, Sweep):
        return job.course.status.final and not job.course.swept
    work = Work.RUNNING if isinstance(effect, Convert) else Work.VERIFYING
    return job.course.work is work and job.is_at(effect.term, effect.attempt)
