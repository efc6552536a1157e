"""What passes between the runtime and a fold: one fetch of one partition in, one flush out. Plain values, no client."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from topics import native
from topics.headers import Headers, headers_nbytes, read_headers, write_headers


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


class Record(NamedTuple):
    """One record of a log, as plain values."""

    offset: int
    append_ms: int
    value: bytes | None
    key: bytes | None = None
    headers: Headers = ()


@dataclass(frozen=True, slots=True)
class Batch:
    """One fetch of one partition: n records in offset order, as columns.

    `begin` is the position the fetch was asked from and `end` the position after it; both count control records and
    aborted transactions that no reader sees, so `begin` of a batch equals `end` of the one before exactly when nothing
    was dropped between them. `columns` is int64[8, n] as `native.split_records` makes it, places counted in `data`.
    `fetched_s` is when the fetch was taken up, in seconds of the monotonic clock; no fold may look at it. 0 for a batch that
    was not fetched.
    """

    topic: str
    partition: int
    begin: int
    end: int
    data: npt.NDArray[np.uint8]
    columns: npt.NDArray[np.int64]
    unreadable: tuple[Unreadable, ...] = ()
    fetched_s: float = field(default=0.0, compare=False)

    @classmethod
    def of(cls, topic: str, partition: int, begin: int, end: int, records: Sequence[Record]) -> Batch:
        """A batch of records that are plain values already."""
        headers = [write_headers(record.headers) for record in records]
        pieces = [piece for r, raw in zip(records, headers, strict=True) for piece in (r.key, r.value, raw)]
        size = np.array([-1 if piece is None else len(piece) for piece in pieces], dtype=np.int64).reshape(-1, 3)
        at = np.cumsum(np.maximum(size, 0)).reshape(-1, 3) - np.maximum(size, 0)
        columns = np.empty((8, len(records)), dtype=np.int64)
        columns[native.OFFSET] = [record.offset for record in records]
        columns[native.TIME] = [record.append_ms for record in records]
        columns[native.KEY_AT :: 2], columns[native.KEY_SIZE :: 2] = at.T, size.T
        data = np.frombuffer(b"".join(piece or b"" for piece in pieces), dtype=np.uint8)
        return cls(topic, partition, begin, end, data, columns)

    def __len__(self) -> int:
        return int(self.columns.shape[1])

    @property
    def offsets(self) -> npt.NDArray[np.int64]:
        """The offset of each record."""
        column: npt.NDArray[np.int64] = self.columns[native.OFFSET]
        return column

    @property
    def append_ms(self) -> npt.NDArray[np.int64]:
        """The broker's append time of each record."""
        column: npt.NDArray[np.int64] = self.columns[native.TIME]
        return column

    @property
    def values(self) -> native.Texts:
        """The value of each record."""
        return native.Texts(self.data, self.columns[native.VALUE_AT], self.columns[native.VALUE_SIZE])

    @property
    def raw_headers(self) -> native.Texts:
        """The headers of each record as they lie in it, of size 0 for none; see `topics.headers`."""
        return native.Texts(self.data, self.columns[native.HEADERS_AT], self.columns[native.HEADERS_SIZE])

    def key(self, row: int) -> bytes | None:
        """One record's key."""
        return self._bytes(native.KEY_AT, row)

    def value(self, row: int) -> bytes | None:
        """One record's value."""
        return self._bytes(native.VALUE_AT, row)

    def headers(self, row: int) -> Headers:
        """One record's headers."""
        return read_headers(self._bytes(native.HEADERS_AT, row) or b"")

    def records(self) -> Iterator[Record]:
        """All records as plain values, for folds that look at each."""
        # Column by column out of numpy, whose objects for single numbers and slices cost more than the record.
        data = self.data.data
        for offset, append_ms, key_at, key_size, at, size, headers_at, headers_size in zip(
            *self.columns.tolist(), strict=True
        ):
            key = None if key_size < 0 else data[key_at : key_at + key_size].tobytes()
            value = None if size < 0 else data[at : at + size].tobytes()
            headers = read_headers(data[headers_at : headers_at + headers_size].tobytes()) if headers_size > 0 else ()
            yield Record(offset, append_ms, value, key, headers)

    def since(self, offset: int) -> Batch:
        """The part of this batch at and after `offset`."""
        cut = int(np.searchsorted(self.offsets, offset))
        return Batch(
            self.topic,
            self.partition,
            max(self.begin, offset),
            self.end,
            self.data,
            self.columns[:, cut:],
            tuple(u for u in self.unreadable if u.first_offset >= offset),
            self.fetched_s,
        )

    def _bytes(self, column: int, row: int) -> bytes | None:
        at, size = self.columns[column : column + 2, row].tolist()
        return None if size < 0 else self.data[at : at + size].tobytes()


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
        return len(self.key or b"") + len(self.value or b"") + headers_nbytes(self.headers)


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """A record that can never succeed: why, its coordinates and its bytes, and how often it was tried."""

    reason: str
    error: str
    topic: str
    partition: int
    offset: int
    append_ms: int
    key: bytes | None
    value: bytes | None
    headers: Headers = ()
    attempts: int = 1

    @classmethod
    def of_record(cls, topic: str, partition: int, record: Record, reason: str, error: str) -> DeadLetter:
        """A record of a topic's partition, whole."""
        where = (topic, partition, record.offset, record.append_ms)
        return cls(reason, error, *where, record.key, record.value, record.headers)

    @classmethod
    def unreadable(cls, batch: Batch, piece: Unreadable, error: str) -> DeadLetter:
        """Bytes of a batch that are no records."""
        return cls(
            "unreadable", error, batch.topic, batch.partition, piece.first_offset, piece.append_ms, None, piece.data
        )

    @property
    def nbytes(self) -> int:
        """Bytes of the record's key, value and headers."""
        return len(self.key or b"") + len(self.value or b"") + headers_nbytes(self.headers)


@dataclass(slots=True)
class Flush:
    """What one flush of one partition writes, encoded before any later record was folded.

    Everything below `next_offset` is folded into this flush or an earlier one. `safe_offset`, where it is another, is what
    the log must still be read from by whoever takes the partition over: a fold may leave bytes in the log that it has yet
    to use. `rows` maps a ClickHouse table to the pyarrow Tables that are written before the transaction; `changelog` and
    `emits` go into it; `effects` are done once it has committed (see `streams.runtime.outside`).
    """

    next_offset: int
    safe_offset: int | None = None
    rows: dict[str, list[Any]] = field(default_factory=dict)
    changelog: list[tuple[bytes, bytes | None]] = field(default_factory=list)
    emits: list[Emit] = field(default_factory=list)
    dead: list[DeadLetter] = field(default_factory=list)
    effects: list[Any] = field(default_factory=list)
    token: Any = None

    @property
    def cursor(self) -> int:
        """The position to commit."""
        return self.next_offset if self.safe_offset is None else self.safe_offset
