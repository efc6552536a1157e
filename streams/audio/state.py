"""The state of one partition of audio: its sessions, its clock, and what the next flush writes."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

import msgspec

from streams.audio.effects import Effect
from streams.audio.held import Shelf
from streams.audio.rows import Rows
from streams.audio.rules import AudioRules
from streams.audio.session import Session
from topics.records import DeadLetter, Emit, Record

STATE_KEY = b"p"
SESSION_TAG = b"s"

ChangelogRecord = tuple[bytes, bytes | None]


class SavedState(msgspec.Struct, array_like=True):
    """The fold's own record: where its last flush stood, the clock there, totals, and what ClickHouse holds."""

    epoch: int
    position: int
    clock_ms: int
    materialised: int
    totals: dict[str, int]


@dataclass
class AudioState:
    """State of one partition. `position`: everything below is folded into what is committed; `start`: where reading began
    after the restore, so that bytes before it come from the log's reader only."""

    rules: AudioRules
    shelf: Shelf
    epoch: int = 0
    position: int = 0
    start: int = 0
    clock_ms: int = 0
    offset: int = 0
    materialised: int = 0
    sessions: dict[str, Session] = field(default_factory=dict)
    deadlines: list[tuple[int, str]] = field(default_factory=list)
    awaited: list[tuple[int, str, int]] = field(default_factory=list)  # (last offset, session, first seq)
    dirty: dict[str, None] = field(default_factory=dict)
    changed: dict[tuple[str, int], None] = field(default_factory=dict)  # segments whose rows are to be written
    tombstones: list[str] = field(default_factory=list)
    emits: list[Emit] = field(default_factory=list)
    dead: list[DeadLetter] = field(default_factory=list)
    effects: list[Effect] = field(default_factory=list)
    totals: Counter[str] = field(default_factory=Counter)


@dataclass(frozen=True)
class Sealed:
    """What a flush leaves to be shown once it has committed: rows of what changed, the clock, totals."""

    version: int
    rows: Rows
    clock_ms: int
    totals: Counter[str]


def session_key(session_id: str) -> bytes:
    """A session's key in the changelog."""
    return SESSION_TAG + session_id.encode()


def applies(state: AudioState, session: Session, record: Record) -> bool:
    """Whether the session's snapshot does not have this record in it yet."""
    return record.offset >= session.applied


def mark(state: AudioState, session: Session) -> None:
    """The next flush writes the session's snapshot."""
    assert state.offset >= state.position, "nothing lasting happens below the committed position"
    state.dirty[session.id] = None


def count(state: AudioState, record: Record, name: str) -> None:
    """Count a record, unless an earlier flush has."""
    if record.offset >= state.position:
        state.totals[name] += 1
