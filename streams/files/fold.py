"""The file core in the shape that the runtime asks for, and what a job looks like from outside."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
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
from streams.runtime.fold import Materialisation, Position
from streams.runtime.unwritten import Unwritten
from topics.event_ids import EventId
from topics.files import Status
from topics.files_events import JobEvent
from topics.records import Batch, Emit, Flush
from topics.rows import FILE_JOBS_ROWS


class FilesFold:
    """Implements `streams.runtime.fold.Fold` over `core`."""

    def __init__(self, rules: FilesRules) -> None:
        self.state = FilesState(rules)
        self.applied = 0
        self._kept = Restoring()
        self._position = Position(0, 0)
        self._clock_ms = 0
        self._totals: Counter[str] = Counter()
        self._rows = Unwritten()

    def take_seat(self, term: int) -> None:
        """This process owns the partition, in so many's term: once its own word of it is folded, attempts begin."""
        self.state.seat = term

    def restore(self, records: Sequence[tuple[bytes, bytes | None]]) -> None:
        """See `Fold`."""
        self._kept.take(records)

    def restored(self, position: Position) -> None:
        """See `Fold`."""
        restored(self.state, self._kept, position.epoch, position.offset)
        self._kept = Restoring()
        self._rows = Unwritten(unmaterialised(self.state))
        self._position, self.applied = position, position.offset
        self._clock_ms, self._totals = self.state.clock_ms, Counter(self.state.totals)

    def step(self, batch: Batch) -> None:
        """See `Fold`."""
        core.step(self.state, batch)
        self.applied = batch.end

    def seal(self, position: Position) -> Flush:
        """See `Fold`."""
        flush = core.seal(self.state, position.offset, position.version)
        flush.token = (position, flush.token)
        return flush

    def committed(self, flush: Flush) -> None:
        """See `Fold`."""
        self._position, sealed = flush.token
        self._rows.add(sealed.rows)
        self._clock_ms, self._totals = sealed.clock_ms, sealed.totals

    def undone(self) -> Sequence[Any]:
        """See `Fold`: none. What an earlier owner left is asked for again once the log has been read so far."""
        return ()

    def idle(self) -> Emit | None:
        """See `Fold`: none. Whenever time decides about a job, its flush asks to be woken then."""
        return None

    def materialise(self) -> Materialisation | None:
        """See `Fold`."""
        if not self._rows.rows:
            self.state.materialised = max(self.state.materialised, self._position.version)
            return None
        return Materialisation(self._position, {FILE_JOBS_ROWS: table(self._rows.rows)}, self._rows.newest)

    def materialised(self, done: Materialisation) -> None:
        """See `Fold`."""
        self.state.materialised = max(self.state.materialised, done.position.version)
        self._rows.forget(done.token)

    @property
    def open_rows(self) -> int:
        """See `Fold`."""
        return len(self.state.emits) + len(self.state.dead) + len(self.state.dirty)

    @property
    def unwritten_bytes(self) -> int:
        """See `Fold`."""
        return self._rows.nbytes

    def figures(self) -> Mapping[str, float]:
        """See `Fold`. Outcomes and clock are of what is committed."""
        return {
            **{f"outcome_{name}": float(sum_) for name, sum_ in self._totals.items()},
            "append_ms": float(self._clock_ms),
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
