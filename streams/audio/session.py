"""One session as the fold knows it, and the snapshot of it that the changelog keeps: coordinates, never audio."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import IntEnum

import msgspec

from streams.audio import seqs
from streams.audio.pending import Pending, Piece
from topics.audio import Open
from topics.audio_events import ClosedBy

#: Of an error or a replay's header a snapshot keeps so many bytes.
TEXT_BYTES_MAX = 200


def shortened(error: str) -> str:
    """An error's beginning, as a snapshot keeps it."""
    return error.encode(errors="replace")[:TEXT_BYTES_MAX].decode(errors="ignore")


class Status(IntEnum):
    """A session's course. CLOSING: nothing more is taken, its segments or its recording are still on their way."""

    OPEN = 1
    CLOSING = 2
    CLOSED = 3
    REFUSED = 4


class Kept(IntEnum):
    """What has become of a segment. REMOVED: its bytes are in the recording now."""

    INTENDED = 1
    STORED = 2
    FAILED = 3
    REMOVED = 4


class Segment(msgspec.Struct, array_like=True):
    """A run of consecutive seqs without a gap: one object. Its records lie within `first_offset` to `last_offset`.

    `size` is of the chunks; `object_size` and `md5` are of the object that holds them, once it is stored. `replay` is the
    header of the dead letter's replay that asked for it again, if one did.
    """

    first_seq: int
    last_seq: int
    first_offset: int
    last_offset: int
    size: int
    duration_us: int
    kept: Kept = Kept.INTENDED
    attempts: int = 0
    object_size: int = 0
    md5: bytes = b""
    error: str = ""
    updated_ms: int = 0
    replay: bytes = b""


class Recording(msgspec.Struct, array_like=True, frozen=True):
    """The finished recording, as its manifest has it."""

    key: str
    size: int
    md5: str
    duration_ms: int


class Saved(msgspec.Struct, array_like=True):
    """A session's snapshot: all that the records below `applied` made of it."""

    opened: Open
    status: Status
    opened_ms: int
    opened_offset: int
    last_ms: int
    last_offset: int
    applied: int
    version: int
    ranges: list[list[int]]
    pending: list[Piece]
    segments: list[Segment]
    duplicates: int
    size: int
    duration_us: int
    closed_by: ClosedBy | None
    closed_ms: int
    recording: Recording | None
    error: str


@dataclass
class Session:
    """The live state. `applied` and `version` are of its last snapshot; `fresh` is the offset and the append time of the
    first record since, if there was one. `due_ms` is when the heap of deadlines looks at it next. `deferred`: its bytes are
    not held, nor are those of records below `held_from`. `awaiting` counts the intents of an earlier owner whose bytes are
    being read again."""

    opened: Open
    opened_ms: int
    opened_offset: int
    status: Status = Status.OPEN
    last_ms: int = 0
    last_offset: int = 0
    applied: int = 0
    version: int = 0
    ranges: seqs.Ranges = field(default_factory=list)
    taken: int = 0  # seqs in `ranges`
    pending: Pending = field(default_factory=Pending)
    segments: dict[int, Segment] = field(default_factory=dict)  # by first seq
    duplicates: int = 0
    size: int = 0
    duration_us: int = 0
    closed_by: ClosedBy | None = None
    closed_ms: int = 0
    recording: Recording | None = None
    error: str = ""
    fresh: tuple[int, int] | None = None
    due_ms: int = 0
    intents: dict[int, None] = field(default_factory=dict)  # first seqs of segments without an outcome
    awaiting: int = 0
    held_from: int = 0
    deferred: bool = False
    removing: bool = False

    @property
    def id(self) -> str:
        """The session's id."""
        return self.opened.session_id

    @property
    def live(self) -> bool:
        """Whether its bytes may still be needed."""
        return self.status in (Status.OPEN, Status.CLOSING)

    def in_order(self) -> list[Segment]:
        """Its segments by seq: the recording's order."""
        return sorted(self.segments.values(), key=lambda segment: segment.first_seq)

    def kept(self, *which: Kept) -> Iterator[Segment]:
        """The segments of these fates."""
        return (segment for segment in self.segments.values() if segment.kept in which)

    def stored_seq(self) -> int | None:
        """All accepted seqs up to it rest in the object store; None when the lowest does not."""
        stored = (Kept.STORED, Kept.REMOVED)
        waiting = [s.first_seq for s in self.segments.values() if s.kept not in stored]
        if self.pending:
            waiting.append(self.pending.first_seq)
        first_waiting = min(waiting, default=None)
        done = [
            s.last_seq
            for s in self.segments.values()
            if s.kept in stored and (first_waiting is None or s.last_seq < first_waiting)
        ]
        return max(done, default=None)

    def save(self, applied: int, version: int) -> Saved:
        """Its snapshot, as of `applied`; the session stands there now."""
        self.applied, self.version, self.fresh = applied, version, None
        return Saved(
            self.opened,
            self.status,
            self.opened_ms,
            self.opened_offset,
            self.last_ms,
            self.last_offset,
            applied,
            version,
            self.ranges,
            list(self.pending),
            self.in_order(),
            self.duplicates,
            self.size,
            self.duration_us,
            self.closed_by,
            self.closed_ms,
            self.recording,
            self.error,
        )


def load(saved: Saved) -> Session:
    """The session of a snapshot."""
    return Session(
        opened=saved.opened,
        opened_ms=saved.opened_ms,
        opened_offset=saved.opened_offset,
        status=saved.status,
        last_ms=saved.last_ms,
        last_offset=saved.last_offset,
        applied=saved.applied,
        version=saved.version,
        ranges=saved.ranges,
        taken=seqs.count(saved.ranges),
        pending=Pending(saved.pending),
        segments={segment.first_seq: segment for segment in saved.segments},
        duplicates=saved.duplicates,
        size=saved.size,
        duration_us=saved.duration_us,
        closed_by=saved.closed_by,
        closed_ms=saved.closed_ms,
        recording=saved.recording,
        error=saved.error,
        intents={s.first_seq: None for s in saved.segments if s.kept is Kept.INTENDED},
    )


encode = msgspec.msgpack.Encoder().encode
decode = msgspec.msgpack.Decoder(Saved).decode
