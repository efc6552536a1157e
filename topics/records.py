"""What passes between the runtime and a fold: one fetch of one partition in, one flush out. Plain values, no client."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

Headers = Sequence[tuple[str, bytes | None]]


@dataclass(frozen=True, slots=True)
class Unreadable:
    """A stretch of the log that no client can decode (a corrupt compressed batch): its offsets, bytes and error.

    `data` is the whole broker batch in which it lies, as it was sent.
    """

    first_offset: int
    next_offset: int
    append_ms: int
    data: bytes
    error: str


@dataclass(frozen=True, slots=True)
class Batch:
    """One fetch of one partition, as columns of n records in offset order.

    `begin` is the position the fetch was asked from and `end` the position after it; both count control records and
    aborted transactions that no reader sees, so `begin` of a batch equals `end` of the one before exactly when nothing
    was dropped between them. `append_ms` is the broker's append time.
    """

    topic: str
    partition: int
    begin: int
    end: int
    offsets: npt.NDArray[np.int64]
    append_ms: npt.NDArray[np.int64]
    keys: list[bytes | None]
    values: list[bytes | None]
    headers: list[Headers]
    unreadable: tuple[Unreadable, ...] = ()

    def __len__(self) -> int:
        return len(self.values)

    def since(self, offset: int) -> Batch:
        """The part of this batch at and after `offset`."""
        cut = int(np.searchsorted(self.offsets, offset))
        return Batch(
            self.topic,
            self.partition,
            max(self.begin, offset),
            self.end,
            self.offsets[cut:],
            self.append_ms[cut:],
            self.keys[cut:],
            self.values[cut:],
            self.headers[cut:],
            tuple(u for u in self.unreadable if u.first_offset >= offset),
        )


class Emit(NamedTuple):
    """A record to write inside the flush's transaction. `partition` None: by the key's hash."""

    topic: str
    key: bytes | None
    value: bytes | None
    headers: Headers = ()
    partition: int | None = None

    @property
    def nbytes(self) -> int:
        """Bytes of key, value and headers, before any compression."""
        size = len(self.key or b"") + len(self.value or b"")
        for name, value in self.headers:
            size += len(name.encode()) + len(value or b"")
        return size


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """A record that can never succeed: why, its coordinates and its bytes."""

    reason: str
    error: str
    topic: str
    partition: int
    offset: int
    append_ms: int
    key: bytes | None
    value: bytes | None
    headers: Headers = ()


@dataclass(slots=True)
class Flush:
    """What one flush of one partition writes, encoded before any later record was folded.

    `next_offset` is the safe position: everything below it is in this flush or an earlier one. `rows` maps a ClickHouse
    table to the pyarrow Tables that are written before the transaction; `changelog` and `emits` go into it.
    """

    next_offset: int
    rows: dict[str, list[Any]] = field(default_factory=dict)
    changelog: list[tuple[bytes, bytes | None]] = field(default_factory=list)
    emits: list[Emit] = field(default_factory=list)
    dead: list[DeadLetter] = field(default_factory=list)
    token: Any = None


def header(headers: Headers, name: str) -> bytes | None:
    """The first value of header `name`, or None."""
    for key, value in headers:
        if key == name:
            return value
    return None


@dataclass(frozen=True, slots=True)
class Counts:
    """How many records of each outcome a step saw, by label (`accepted`, `duplicate`, `late`, ...)."""

    by_outcome: Mapping[str, int]
