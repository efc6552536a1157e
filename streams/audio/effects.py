"""What the fold asks of the world, as values. Doing one twice changes nothing: keys come from the session and its seqs."""

from __future__ import annotations

from dataclasses import dataclass

from topics.audio import Open
from topics.audio_events import ClosedBy, SeqRange


@dataclass(frozen=True)
class PutSegment:
    """Store the chunks `first_seq` to `last_seq`; their records lie within the offsets. `attempts` were made before."""

    opened: Open
    first_seq: int
    last_seq: int
    first_offset: int
    last_offset: int
    attempts: int = 0


@dataclass(frozen=True)
class Source:
    """One stored segment that a recording is made of. `size` is of its chunks, `object_size` and `md5` of its object."""

    first_seq: int
    last_seq: int
    size: int
    object_size: int
    md5: str


@dataclass(frozen=True)
class Assemble:
    """Make a session's recording and manifest of its segments, in their order. `failed` are ranges that were lost."""

    opened: Open
    sources: tuple[Source, ...]
    failed: tuple[SeqRange, ...]
    opened_ms: int
    closed_ms: int
    closed_by: ClosedBy


@dataclass(frozen=True)
class RemoveSegments:
    """Remove the segments' objects: their recording is verified. `ranges` are their first and last seqs."""

    opened: Open
    ranges: tuple[SeqRange, ...]


Effect = PutSegment | Assemble | RemoveSegments
