"""Committed rollups of one partition: per hour and key the sums and sketches, what ClickHouse lacks, and snapshots.

The changelog holds deltas. When the deltas of an hour outweigh twice its state, the hour's snapshot replaces them: its
chunks are written and the deltas removed by tombstones in the same transaction. Applying the log in order therefore
gives the state, compacted or not: a first chunk begins the hour anew, a delta adds to it.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
import pyarrow as pa

from streams.sketches.tdigest import TDigests
from streams.sketches.uniq import UniqSets
from streams.traffic.delta import BYTES, BYTES_MOST, HOUR_MS, I64, RECORD_BYTES, Delta, Key, decode_delta, encode_pieces
from streams.traffic.partials import KeyColumns, partials

DELTA = b"r"
SNAPSHOT = b"s"
_DELTA_KEY = struct.Struct(">ciQ")
_SNAPSHOT_KEY = struct.Struct(">ciI")

#: An hour's deltas may weigh this much before a snapshot is considered, bytes.
SNAPSHOT_AT_BYTES = 512 * 1024
#: Keys of one snapshot chunk.
_CHUNK_KEYS = 4096

ChangelogRecord = tuple[bytes, bytes | None]
#: Some keys: rows of hours.
Part = list[tuple[int, I64]]


class _Chunk(msgspec.Struct, array_like=True):
    first: int
    paths: list[str]
    methods: list[str]
    classes: bytes
    groups: list[tuple[str, ...]]
    sums: bytes
    changed: bytes
    visitors: bytes
    times: bytes


_encode = msgspec.msgpack.Encoder().encode
_decode_chunk = msgspec.msgpack.Decoder(_Chunk).decode


@dataclass(slots=True)
class _Log:
    """What the changelog holds of one hour: live delta numbers, their bytes, and the last snapshot's size."""

    first_delta: int = 0
    next_delta: int = 0
    delta_bytes: int = 0
    chunks: int = 0
    snapshot_bytes: int = 0


class HourRollup:
    """All keys of one hour: `sums` is (6, capacity) as in `Delta`, the sketches go by row."""

    def __init__(self) -> None:
        self.rows: dict[Key, int] = {}
        self.keys: list[Key] = []
        self.sums: I64 = np.zeros((6, 16), dtype=np.int64)
        self.changed: I64 = np.zeros(16, dtype=np.int64)
        self.dirty: npt.NDArray[np.bool_] = np.zeros(16, dtype=bool)
        self.visitors = UniqSets()
        self.times = TDigests()
        self._columns = KeyColumns()

    def __len__(self) -> int:
        return len(self.keys)

    def apply(self, delta: Delta) -> None:
        """Add one delta."""
        at = self._rows_of(delta.keys)
        self.sums[:5, at] += delta.sums[:5]
        # Two sums too large together wrap to below 0. What stays at a limit adds up to the same in any order.
        self.sums[BYTES, at[self.sums[BYTES, at] < 0]] = BYTES_MOST
        self.sums[5, at] = np.maximum(self.sums[5, at], delta.sums[5])
        self.changed[at] = delta.version
        self.dirty[at] = True
        self.visitors.add(np.repeat(at, delta.hash_counts).astype(np.uint32), delta.hashes)
        self.times.add(np.repeat(at, delta.value_counts).astype(np.uint32), delta.values)

    def _rows_of(self, keys: list[Key]) -> I64:
        rows = self.rows
        at = np.empty(len(keys), dtype=np.int64)
        for i, key in enumerate(keys):
            row = rows.get(key)
            if row is None:
                row = rows[key] = len(rows)
                self.keys.append(key)
            at[i] = row
        if len(rows) > len(self.changed):
            self._grow(len(rows))
        return at

    def _grow(self, size: int) -> None:
        capacity = max(size, 2 * len(self.changed))
        extra = capacity - len(self.changed)
        self.sums = np.concatenate([self.sums, np.zeros((6, extra), dtype=np.int64)], axis=1)
        self.changed = np.concatenate([self.changed, np.zeros(extra, dtype=np.int64)])
        self.dirty = np.concatenate([self.dirty, np.zeros(extra, dtype=bool)])

    def table(self, rows: I64, hour_s: int, topic: str, partition: int, version: int) -> Any:
        """These rows as ClickHouse stores them."""
        self._columns.update(self.keys)
        keys, sums = self._columns.arrays(rows), self.sums[:, rows]
        states = self.visitors.states(rows), self.times.states(rows)
        return partials(hour_s, topic, partition, version, keys, sums, *states)

    def chunks(self) -> Iterator[bytes]:
        """The hour's snapshot, in pieces of a size that fits a record."""
        size = _CHUNK_KEYS
        first = 0
        while first < len(self):
            rows = np.arange(first, min(first + size, len(self)))
            encoded = self._chunk(rows)
            if len(encoded) > RECORD_BYTES and len(rows) > 1:
                size = max(1, len(rows) // 2)
                continue
            yield encoded
            first += len(rows)

    def _chunk(self, rows: I64) -> bytes:
        keys = [self.keys[row] for row in rows.tolist()]
        return _encode(
            _Chunk(
                int(rows[0]),
                [key[0] for key in keys],
                [key[1] for key in keys],
                bytes(key[2] for key in keys),
                [key[3] for key in keys],
                np.ascontiguousarray(self.sums[:, rows]).astype("<i8").tobytes(),
                self.changed[rows].astype("<i8").tobytes(),
                self.visitors.dump(rows),
                self.times.dump(rows),
            )
        )

    def load(self, chunk: _Chunk) -> None:
        """Add a chunk's keys, which must be new."""
        keys: list[Key] = list(zip(chunk.paths, chunk.methods, chunk.classes, chunk.groups, strict=True))
        at = self._rows_of(keys)
        self.sums[:, at] = np.frombuffer(chunk.sums, "<i8").reshape(6, len(keys))
        self.changed[at] = np.frombuffer(chunk.changed, "<i8")
        self.dirty[at] = True
        self.visitors.load(chunk.visitors, at)
        self.times.load(chunk.times, at)


@dataclass(slots=True)
class Rollups:
    """All open hours of one partition."""

    topic: str
    partition: int
    hours: dict[int, HourRollup] = field(default_factory=dict)
    logs: dict[int, _Log] = field(default_factory=dict)

    # -- commit and restore -------------------------------------------------------------------------------------

    def apply(self, delta: Delta) -> None:
        """Add a committed delta."""
        hour = self.hours.get(delta.hour)
        if hour is None:
            hour = self.hours[delta.hour] = HourRollup()
        hour.apply(delta)

    def restore(self, key: bytes, value: bytes | None) -> None:
        """Apply one changelog record, in log order."""
        if key[:1] == DELTA:
            self._restore_delta(key, value)
        else:
            self._restore_chunk(key, value)

    def _restore_delta(self, key: bytes, value: bytes | None) -> None:
        _, hour, number = _DELTA_KEY.unpack(key)
        entry = self.logs.setdefault(hour, _Log())
        if value is None:
            entry.first_delta = max(entry.first_delta, number + 1)
            entry.next_delta = max(entry.next_delta, number + 1)
            return
        self.apply(decode_delta(hour, value))
        entry.next_delta = number + 1
        entry.delta_bytes += len(value)

    def _restore_chunk(self, key: bytes, value: bytes | None) -> None:
        _, hour, number = _SNAPSHOT_KEY.unpack(key)
        if value is None:
            if number == 0:
                self.hours.pop(hour, None)
                self.logs.pop(hour, None)
            return
        entry = self.logs.setdefault(hour, _Log())
        chunk = _decode_chunk(value)
        if number == 0:
            self.hours[hour] = HourRollup()
            entry.snapshot_bytes = entry.delta_bytes = entry.chunks = 0
        state = self.hours.get(hour)
        # A chunk of an older snapshot, whose first chunk compaction removed: its successor follows.
        if state is not None and chunk.first == len(state):
            state.load(chunk)
            entry.chunks = number + 1
            entry.snapshot_bytes += len(value)

    def settle(self, materialised: int) -> None:
        """End of a restore: only what changed after version `materialised` is not yet in ClickHouse."""
        for state in self.hours.values():
            state.dirty[: len(state)] = state.changed[: len(state)] > materialised

    # -- changelog ----------------------------------------------------------------------------------------------

    def log(self, found: list[Delta]) -> Iterator[ChangelogRecord]:
        """The records of a flush with these deltas: snapshots of hours whose deltas grew too heavy, then the deltas."""
        for delta in found:
            entry = self.logs.setdefault(delta.hour, _Log())
            if entry.delta_bytes > max(SNAPSHOT_AT_BYTES, 2 * entry.snapshot_bytes):
                yield from self._snapshot(delta.hour, entry)
            for value in encode_pieces(delta):
                yield _DELTA_KEY.pack(DELTA, delta.hour, entry.next_delta), value
                entry.next_delta += 1
                entry.delta_bytes += len(value)

    def _snapshot(self, hour: int, entry: _Log) -> Iterator[ChangelogRecord]:
        """The hour's committed state in place of all its deltas so far: none is under way when a flush is sealed."""
        before, size, number = entry.chunks, 0, 0
        for number, value in enumerate(self.hours[hour].chunks(), 1):
            size += len(value)
            yield _SNAPSHOT_KEY.pack(SNAPSHOT, hour, number - 1), value
        for stale in range(number, before):
            yield _SNAPSHOT_KEY.pack(SNAPSHOT, hour, stale), None
        for delta in range(entry.first_delta, entry.next_delta):
            yield _DELTA_KEY.pack(DELTA, hour, delta), None
        entry.first_delta, entry.delta_bytes = entry.next_delta, 0
        entry.chunks, entry.snapshot_bytes = number, size

    def closable(self, before_hour: int) -> list[int]:
        """Hours before `before_hour`, which no event can reach any more, that ClickHouse has."""
        return [h for h, state in self.hours.items() if h < before_hour and not state.dirty[: len(state)].any()]

    def close(self, hours: list[int]) -> Iterator[ChangelogRecord]:
        """Remove hours for good."""
        for hour in hours:
            entry = self.logs.pop(hour)
            del self.hours[hour]
            for delta in range(entry.first_delta, entry.next_delta):
                yield _DELTA_KEY.pack(DELTA, hour, delta), None
            for number in reversed(range(max(1, entry.chunks))):
                yield _SNAPSHOT_KEY.pack(SNAPSHOT, hour, number), None

    # -- ClickHouse ---------------------------------------------------------------------------------------------

    def dirty(self) -> Part:
        """All keys that changed since they were written: (hour, rows)."""
        found = [(hour, np.flatnonzero(state.dirty[: len(state)])) for hour, state in self.hours.items()]
        return [(hour, rows) for hour, rows in found if len(rows)]

    def clean(self, parts: Part, version: int) -> None:
        """These rows were written as of `version`; what changed since stays dirty."""
        for hour, rows in parts:
            state = self.hours[hour]
            state.dirty[rows] = state.changed[rows] > version

    def table(self, parts: Part, version: int) -> Any:
        """Rows of `path_stats_hourly_rows` with the whole state of each key."""
        return pa.concat_tables(
            [
                self.hours[hour].table(rows, hour * (HOUR_MS // 1000), self.topic, self.partition, version)
                for hour, rows in parts
            ]
        )

    def key_count(self) -> int:
        """Keys of all open hours."""
        return sum(map(len, self.hours.values()))
