"""One job as the fold knows it, and the snapshot of it that the changelog keeps."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import IntEnum

import msgspec

from streams.files import formats
from topics.files import SentPart, Stage, Status, Submit
from topics.files_keys import converted_key, renamed
from topics.headers import Headers
from topics.malformed import Malformed

#: How far a job is where each stage begins, of 100; in between goes the converter's own measure.
STARTED, PREPARED, UPLOADED = 5, 35, 80
_STAGES = {Stage.FETCHING: (35, 45), Stage.CONVERTING: (45, 70), Stage.UPLOADING: (70, 80)}


class Work(IntEnum):
    """What is done about a job. PAUSED: after an error, until its next attempt is due."""

    WAITING = 0
    RUNNING = 1
    PAUSED = 2
    VERIFYING = 3
    OVER = 4


class What(IntEnum):
    """What a mark tells; its event is of the same name."""

    ACCEPTED = 1
    STARTED = 2
    PREPARED = 3
    PROGRESSED = 4
    UPLOADED = 5
    DISCARDED = 6
    COMPLETED = 7
    FAILED = 8
    CANCELLED = 9


class Mark(msgspec.Struct, array_like=True, frozen=True):
    """Something that happened to a job, short: enough to tell its event again. `value` is a pause, a size or a percentage,
    `label` an error's type or a stage."""

    version: int
    number: int
    at_ms: int
    what: What
    progress: int
    attempt: int = 0
    value: int = 0
    label: str = ""


class Origin(msgspec.Struct, array_like=True, frozen=True):
    """The record that submitted a job: never changed, kept once."""

    value: bytes
    headers: list[tuple[str, bytes | None]]
    offset: int
    append_ms: int
    accepted_version: int


class Upload(msgspec.Struct, array_like=True, frozen=True):
    """What the converter has uploaded; see `topics.files.Converted`."""

    size_bytes: int = 0
    checksum: str = ""
    duration_ms: int = 0
    parts: tuple[SentPart, ...] = ()


class Course(msgspec.Struct, array_like=True):
    """All about a job that changes. `term` and `attempt` name the attempt under way, or the last one; `begun` are all of
    them. `turn` is the job's place among those that wait for another attempt. `swept` says that no other attempt has left
    anything; until then it is looked for at `sweep_ms`."""

    status: Status = Status.ACCEPTED
    work: Work = Work.WAITING
    progress: int = 0
    term: int = 0
    attempt: int = 0
    retries: int = 0
    lost: int = 0
    begun: list[tuple[int, int]] = []
    accepted_ms: int = 0
    started_ms: int = 0
    updated_ms: int = 0
    finished_ms: int = 0
    next_ms: int = 0
    turn: int = 0
    sweep_ms: int = 0
    swept: bool = True
    source_bytes: int = 0
    upload_id: str | None = None
    upload: Upload = Upload()
    prepare_ms: int = 0
    convert_ms: int = 0
    verify_ms: int = 0
    error_type: str = ""
    error: str = ""
    marks: list[Mark] = []
    version: int = 0


@dataclass
class Job:
    """The live state. `due_ms` is when the heap of deadlines looks at it next."""

    origin: Origin
    submit: Submit
    course: Course = field(default_factory=Course)
    due_ms: int = 0

    @property
    def id(self) -> str:
        """The job's id."""
        return self.submit.job_id

    @property
    def user(self) -> str:
        """Whose it is; nobody's are one user's."""
        return self.submit.user or ""

    @property
    def headers(self) -> Headers:
        """Those of its submit."""
        return self.origin.headers

    @property
    def plan(self) -> formats.Plan | Malformed:
        """What is to be made, or what is wrong with that."""
        return formats.plan(self.submit.format, self.submit.quality, self.submit.options)

    @property
    def file_name(self) -> str:
        """What the result is called."""
        source = self.submit.source
        name = self.submit.file_name or (source.key or source.url or "").partition("?")[0]
        plan = self.plan
        return renamed(name, "bin" if isinstance(plan, Malformed) else plan.format.extension)

    def key(self, term: int, attempt: int) -> str:
        """Where an attempt's result goes."""
        return converted_key(self.submit.submitted_ms, self.id, term, attempt, self.file_name)

    @property
    def r2_key(self) -> str | None:
        """The result's, once it is verified."""
        done = self.course.status is Status.COMPLETED
        return self.key(self.course.term, self.course.attempt) if done else None

    def losers(self) -> list[str]:
        """The keys of the attempts that did not win."""
        won = self.r2_key
        return [key for key in (self.key(*place) for place in self.course.begun) if key != won]

    def is_at(self, term: int, attempt: int) -> bool:
        """Whether that is the attempt under way."""
        return (self.course.term, self.course.attempt) == (term, attempt)


def progress_of(stage: Stage, percent: int) -> int:
    """How far a job is whose converter is so far with a stage."""
    begin, end = _STAGES[stage]
    return begin + (end - begin) * percent // 100


encode = msgspec.msgpack.Encoder().encode
decode_origin = msgspec.msgpack.Decoder(Origin).decode
decode_course = msgspec.msgpack.Decoder(Course).decode
decode_submit = msgspec.json.Decoder(Submit).decode
