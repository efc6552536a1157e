"""The state of one partition of AI tasks: its tasks, their lines, its clock, and what the next flush writes."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field

import msgspec

from streams.ai.effects import Effect
from streams.ai.line import Line, Place, SavedLine
from streams.ai.rows import Row
from streams.ai.rules import AiRules
from streams.ai.task import Task
from topics.records import DeadLetter, Emit
from topics.rows import version_of

STATE_KEY = b"p"
ORIGIN_TAG, SEGMENT_TAG, TASK_TAG, TEXT_TAG = b"q", b"g", b"t", b"x"

ChangelogRecord = tuple[bytes, bytes | None]
Split = Callable[[str, int, int], list[str]]


class SavedState(msgspec.Struct, array_like=True):
    """The fold's own record: where its last flush stood, the clock there, totals, and what ClickHouse holds."""

    epoch: int
    position: int
    clock_ms: int
    term: int
    materialised: int
    batches: int
    totals: dict[str, int]
    lines: dict[str, SavedLine]


@dataclass
class AiState:
    """State of one partition. `seat` is the term of this process, from which on it grants; `offset` that of the record
    being folded, `number` of the event that it brings about next."""

    rules: AiRules
    split: Split
    epoch: int = 0
    position: int = 0
    clock_ms: int = 0
    term: int = 0
    seat: int = -1
    offset: int = 0
    number: int = 0
    materialised: int = 0
    batches: int = 0
    tasks: dict[str, Task] = field(default_factory=dict)  # in the order of the log
    by_user: dict[str, dict[str, None]] = field(default_factory=lambda: defaultdict(dict))
    lines: dict[str, Line] = field(default_factory=dict)
    deadlines: list[tuple[int, str]] = field(default_factory=list)
    open: dict[str, None] = field(default_factory=dict)  # tasks that are not over
    finished: dict[str, None] = field(default_factory=dict)  # in the order of their ends
    new: dict[str, None] = field(default_factory=dict)  # tasks whose origins are to be written
    dirty: dict[str, None] = field(default_factory=dict)
    shown: dict[str, None] = field(default_factory=dict)  # tasks whose rows are to be written
    chunks: dict[tuple[str, int, int], None] = field(default_factory=dict)
    kept: dict[str, int] = field(default_factory=dict)  # bytes of texts of finished tasks, in the order of their ends
    kept_bytes: int = 0
    tombstones: list[bytes] = field(default_factory=list)
    emits: list[Emit] = field(default_factory=list)
    dead: list[DeadLetter] = field(default_factory=list)
    effects: list[Effect] = field(default_factory=list)
    totals: Counter[str] = field(default_factory=Counter)

    @property
    def seated(self) -> bool:
        """Whether this process has folded its own word that it owns the partition: until then others may have outcomes
        in the log, and neither is a call granted nor does time end one."""
        return self.term == self.seat

    @property
    def event_version(self) -> int:
        """The version of what the record being folded brings about."""
        return version_of(self.epoch, self.offset)


@dataclass(frozen=True)
class Sealed:
    """What a flush leaves to be shown once it has committed."""

    version: int
    rows: dict[str, Row]
    clock_ms: int
    totals: Counter[str]


def line_of(state: AiState, model: str) -> Line:
    """The line of a model, made where there is none."""
    return state.lines.setdefault(model, Line())


def place_of(task: Task, call: int) -> Place:
    """A waiting call's place."""
    return Place(task.calls[call].tag, task.accepted_version, call, task.id)


def key_of(tag: bytes, task_id: str, *numbers: int) -> bytes:
    """A key of the changelog."""
    return tag + "/".join([task_id, *(f"{number:05d}" for number in numbers)]).encode()
