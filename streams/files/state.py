"""The state of one partition of file jobs: its jobs, who waits, its clock, and what the next flush writes."""

from __future__ import annotations

import heapq
from collections import Counter, defaultdict
from dataclasses import dataclass, field

import msgspec

from streams.files.effects import Effect
from streams.files.job import Job, Mark, What, Work
from streams.files.rows import Row
from streams.files.rules import FilesRules
from streams.files.telling import event_of
from topics.files_events import encode_event
from topics.records import DeadLetter, Emit
from topics.rows import version_of

STATE_KEY = b"p"
ORIGIN_TAG, COURSE_TAG = b"q", b"c"

ChangelogRecord = tuple[bytes, bytes | None]


class SavedState(msgspec.Struct, array_like=True):
    """The fold's own record: where its last flush stood, the clock there, totals, and what ClickHouse holds."""

    clock_ms: int
    term: int
    materialised: int
    turns: int
    totals: dict[str, int]


@dataclass
class FilesState:
    """State of one partition. `seat` is the term of this process, from which on it begins attempts; `offset` that of the
    record being folded, `number` of the event that it brings about next."""

    rules: FilesRules
    epoch: int = 0
    clock_ms: int = 0
    term: int = 0
    seat: int = -1
    offset: int = 0
    number: int = 0
    materialised: int = 0
    turns: int = 0
    jobs: dict[str, Job] = field(default_factory=dict)  # in the order of the log
    by_user: dict[str, dict[str, None]] = field(default_factory=lambda: defaultdict(dict))
    open: dict[str, None] = field(default_factory=dict)  # jobs that are not over
    finished: dict[str, None] = field(default_factory=dict)  # in the order of their ends
    waiting: dict[str, dict[str, None]] = field(default_factory=dict)  # by user, in the order of the log
    first: dict[str, None] = field(default_factory=dict)  # jobs that wait for another attempt
    running: Counter[str] = field(default_factory=Counter)  # attempts that have a slot, by user
    deadlines: list[tuple[int, str]] = field(default_factory=list)
    new: dict[str, None] = field(default_factory=dict)  # jobs whose origins are to be written
    dirty: dict[str, None] = field(default_factory=dict)
    shown: dict[str, None] = field(default_factory=dict)  # jobs whose rows are to be written
    tombstones: list[bytes] = field(default_factory=list)
    emits: list[Emit] = field(default_factory=list)
    dead: list[DeadLetter] = field(default_factory=list)
    effects: list[Effect] = field(default_factory=list)
    totals: Counter[str] = field(default_factory=Counter)

    @property
    def seated(self) -> bool:
        """Whether this process has folded its own word that it owns the partition: until then others may have outcomes in
        the log, and neither does an attempt begin nor does time change anything."""
        return self.term == self.seat

    @property
    def event_version(self) -> int:
        """The version of what the record being folded brings about."""
        return version_of(self.epoch, self.offset)


@dataclass(frozen=True)
class Sealed:
    """What a flush leaves to be shown once it has committed."""

    rows: dict[str, Row]
    clock_ms: int
    totals: Counter[str]


def key_of(tag: bytes, job_id: str) -> bytes:
    """A key of the changelog."""
    return tag + job_id.encode()


def mark(state: FilesState, job: Job, what: What, value: int = 0, label: str = "") -> None:
    """Something happened to a job: it is told, and its snapshot is written."""
    course = job.course
    place = (state.event_version, state.number, state.clock_ms)
    made = Mark(*place, what, course.progress, course.attempt, value, label)
    if what is What.PROGRESSED and course.marks[-1].what is What.PROGRESSED:
        course.marks.pop()
    course.marks.append(made)
    course.updated_ms = state.clock_ms
    state.emits.append(
        Emit(state.rules.events, job.id.encode(), encode_event(event_of(job, made, state.rules.partition)))
    )
    state.number += 1
    state.dirty[job.id] = state.shown[job.id] = None


def schedule(state: FilesState, job: Job) -> None:
    """Have the job looked at when time alone changes something about it: its next attempt, or what is to be swept."""
    course = job.course
    due_ms = course.next_ms if course.work is Work.PAUSED else 0 if course.swept else course.sweep_ms
    if due_ms and due_ms != job.due_ms:
        heapq.heappush(state.deadlines, (due_ms, job.id))
    job.due_ms = due_ms


def first_due(state: FilesState) -> Job | None:
    """The job whose deadline is the next."""
    while state.deadlines:
        due_ms, job_id = state.deadlines[0]
        job = state.jobs.get(job_id)
        if job is not None and job.due_ms == due_ms:
            return job
        heapq.heappop(state.deadlines)
    return None
