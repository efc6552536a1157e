"""A new owner: the state of the changelog, and what must be shown again."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import msgspec

from streams.files.job import Course, Job, Origin, Work, decode_course, decode_origin, decode_submit
from streams.files.rows import Row, job_row
from streams.files.state import (
    COURSE_TAG,
    ORIGIN_TAG,
    STATE_KEY,
    ChangelogRecord,
    FilesState,
    SavedState,
    schedule,
)


@dataclass
class Restoring:
    """What a changelog holds, by key; made a state at its end."""

    saved: SavedState | None = None
    origins: dict[str, Origin] = field(default_factory=dict)
    courses: dict[str, Course] = field(default_factory=dict)

    def take(self, records: Sequence[ChangelogRecord]) -> None:
        """Apply changelog records in log order."""
        for key, value in records:
            tag, job_id = key[:1], key[1:].decode()
            if key == STATE_KEY and value is not None:
                self.saved = msgspec.msgpack.decode(value, type=SavedState)
            elif value is None:
                (self.origins if tag == ORIGIN_TAG else self.courses).pop(job_id, None)
            elif tag == ORIGIN_TAG:
                self.origins[job_id] = decode_origin(value)
            elif tag == COURSE_TAG:
                self.courses[job_id] = decode_course(value)


def restored(state: FilesState, kept: Restoring, epoch: int, position: int) -> None:
    """End of a restore; reading goes on at `position`."""
    if kept.saved is not None:
        saved = kept.saved
        state.clock_ms, state.term, state.materialised = saved.clock_ms, saved.term, saved.materialised
        state.turns, state.totals = saved.turns, Counter(saved.totals)
    state.epoch, state.offset = epoch, position
    for job_id, origin in sorted(kept.origins.items(), key=lambda item: item[1].accepted_version):
        job = Job(origin, decode_submit(origin.value), kept.courses[job_id])
        state.jobs[job_id] = job
        state.by_user[job.user][job_id] = None
        schedule(state, job)
        if job.course.work is Work.RUNNING:
            state.running[job.user] += 1
        elif job.course.work is Work.WAITING and not job.course.attempt:
            state.waiting.setdefault(job.user, {})[job_id] = None
    jobs = state.jobs.values()
    state.open = {job.id: None for job in jobs if not job.course.status.final}
    over = [job for job in jobs if job.course.status.final]
    over.sort(key=lambda job: (job.course.marks[-1].version, job.course.marks[-1].number))
    state.finished = {job.id: None for job in over}
    again = [job for job in jobs if job.course.work is Work.WAITING and job.course.attempt]
    state.first = {job.id: None for job in sorted(again, key=lambda job: job.course.turn)}


def unmaterialised(state: FilesState) -> dict[str, Row]:
    """What ClickHouse may lack after a restore: jobs newer than it is known to hold."""
    newer = [job for job in state.jobs.values() if job.course.version > state.materialised]
    return {job.id: job_row(job, state.rules.partition) for job in newer}
