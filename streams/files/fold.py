"""The file core in the shape that the runtime asks for, and what a job looks like from outside."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import islice
from typing import Any

from streams.files import core
from streams.files.effects import Effect
from streams.files.job import Job
from streams.files.restoring import Restoring, restored, unmaterialised
from streams.files.rows import table
from streams.files.rules import FilesRules
from streams.files.state import FilesState
from streams.files.telling import history
from streams.runtime.latest import Core, LatestFold
from topics.event_ids import EventId
from topics.files import Status
from topics.files_events import JobEvent
from topics.records import Emit
from topics.rows import FILE_JOBS_ROWS

CORE: Core[FilesState, Restoring] = Core(
    core.step, core.seal, Restoring, restored, unmaterialised, FILE_JOBS_ROWS, table
)


class FilesFold(LatestFold[FilesState, Restoring]):
    """Implements `streams.runtime.fold.Fold` over `core`."""

    def __init__(self, rules: FilesRules) -> None:
        super().__init__(FilesState(rules), CORE)

    def idle(self) -> Emit | None:
        """See `Fold`: none. Whenever time decides about a job, its flush asks to be woken then."""
        return None

    @property
    def open_rows(self) -> int:
        """See `Fold`."""
        return len(self.state.emits) + len(self.state.dead) + len(self.state.dirty)

    def figures(self) -> Mapping[str, float]:
        """See `Fold`. Outcomes and clock are of what is committed."""
        return {
            **self.outcomes(),
            "jobs_open": float(len(self.state.open)),
            "jobs_remembered": float(len(self.state.jobs)),
            "attempts_running": float(self.state.running.total()),
            "jobs_waiting": float(len(self.state.first) + sum(len(own) for own in self.state.waiting.values())),
        }

    # -- what others ask -----------------------------------------------------------------------------------------

    def job(self, job_id: str) -> Job | None:
        """A job as it is folded, committed or not."""
        return self.state.jobs.get(job_id)

    def newest(self, user: str | None, status: Status | None, most: int) -> list[Job]:
        """Jobs, or a user's, newest first."""
        ids = self.state.jobs if user is None else self.state.by_user.get(user, {})
        jobs: Iterator[Job] = (self.state.jobs[job_id] for job_id in reversed(ids))
        return list(islice((job for job in jobs if status is None or job.course.status is status), most))

    def events(self, job: Job, after: EventId | None) -> list[JobEvent]:
        """What was told of a job after an event, as far as it is committed."""
        end = EventId(self._position.epoch, self._position.offset, 0)
        told = history(job, self.state.rules.partition)
        return [event for event in told if (after is None or event.id > after) and event.id < end]

    def described(self, job: Job) -> dict[str, Any]:
        """A job's state for those who ask the owner. A link is for whoever answers them to sign."""
        submit, course = job.submit, job.course
        return {
            "job_id": job.id,
            "status": course.status,
            "progress": course.progress,
            "user": submit.user,
            "format": submit.format,
            "quality": submit.quality or "medium",
            "file_name": job.file_name,
            "r2_key": job.r2_key,
            "size_bytes": course.upload.size_bytes if job.r2_key else None,
            "checksum": course.upload.checksum if job.r2_key else None,
            "duration_ms": course.upload.duration_ms if job.r2_key else None,
            "error": {"type": course.error_type, "message": course.error} if course.error_type else None,
            "attempts": course.attempt,
            "retries": course.retries,
            "lost_attempts": course.lost,
            "submitted_ms": submit.submitted_ms,
            "accepted_ms": course.accepted_ms,
            "started_ms": course.started_ms or None,
            "finished_ms": course.finished_ms or None,
            "updated_ms": course.updated_ms,
        }

    def wanted(self, effect: Effect) -> bool:
        """Whether an effect is still to be done."""
        return core.wanted(self.state, effect)
