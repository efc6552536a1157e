"""What one flush adds to the rollups of one hour, and how it is written to the changelog.

A delta is small whatever the state is: per key its counts, and per event at most four bytes of address hash and four of
response time. The changelog therefore grows with events, not with the size of the sketches; `rollup` compacts it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from streams.sketches.cityhash import uniq_hash
from streams.traffic.columns import Dictionaries, Rows, joined
from topics import native

I64 = npt.NDArray[np.int64]
U32 = npt.NDArray[np.uint32]
F32 = npt.NDArray[np.float32]

HOUR_MS = 3_600_000
#: A heavier record is cut; the changelog's own limit lies well above.
RECORD_BYTES = 700_000
OTHER = "{other}"
#: Rows of a delta's sums: the bytes, which stay at `BYTES_MOST`, and the events with a response time.
BYTES, TIMED = 2, 4
BYTES_MOST = (1 << 63) - 1

#: path, method, status class (1 to 5), the configured dimensions as name, value, name, value, ...: with their names,
#: since a restart may change which are configured while the hour is open.
Key = tuple[str, str, int, tuple[str, ...]]


@dataclass(slots=True)
class Delta:
    """One hour's additions: k keys with their sums; hashes and values in runs, one run a key, in key order.

    `times_us` sums response times in microseconds over the `timed` events that had one; `hash_counts` and
    `value_counts` say how many of `hashes` (uint32, of client addresses) and `values` (float32, response times in
    milliseconds in arrival order) belong to each key. `version` is the position of the flush.
    """

    hour: int
    version: int
    keys: list[Key]
    sums: I64  # (6, k): requests, errors, bytes, times_us, timed, max_us
    hash_counts: I64
    hashes: U32
    value_counts: I64
    values: F32


class _Record(msgspec.Struct, array_like=True):
    version: int
    paths: list[str]
    methods: list[str]
    classes: bytes
    groups: list[tuple[str, ...]]
    sums: bytes
    hash_counts: bytes
    hashes: bytes
    value_counts: bytes
    values: bytes


_encode = msgspec.msgpack.Encoder().encode
_decoder = msgspec.msgpack.Decoder(_Record)


def encode_delta(delta: Delta) -> bytes:
    """The delta as msgpack; numbers are little-endian columns."""
    return _encode(
        _Record(
            delta.version,
            [key[0] for key in delta.keys],
            [key[1] for key in delta.keys],
            bytes(key[2] for key in delta.keys),
            [key[3] for key in delta.keys],
            delta.sums.astype("<i8").tobytes(),
            delta.hash_counts.astype("<u4").tobytes(),
            delta.hashes.astype("<u4").tobytes(),
            delta.value_counts.astype("<u4").tobytes(),
            delta.values.astype("<f4").tobytes(),
        )
    )


def encode_pieces(delta: Delta) -> Iterator[bytes]:
    """The delta as records of at most `RECORD_BYTES` that add up to it in order: a flood of long paths fits no record."""
    value = encode_delta(delta)
    atomic = len(delta.keys) == 1 and max(len(delta.hashes), len(delta.values)) < 2
    if len(value) <= RECORD_BYTES or atomic:
        yield value
        return
    for half in _halves(delta):
        yield from encode_pieces(half)


def _halves(delta: Delta) -> tuple[Delta, Delta]:
    """Two deltas, cut between keys; of a single key, the second has what is left of its runs and no sums."""
    keys, hashes, values = len(delta.keys) // 2, len(delta.hashes) // 2, len(delta.values) // 2
    if keys:
        hashes, values = int(delta.hash_counts[:keys].sum()), int(delta.value_counts[:keys].sum())
        first = (delta.keys[:keys], delta.sums[:, :keys], delta.hash_counts[:keys], delta.value_counts[:keys])
        second = (delta.keys[keys:], delta.sums[:, keys:], delta.hash_counts[keys:], delta.value_counts[keys:])
    else:
        first = (delta.keys, delta.sums, np.array([hashes]), np.array([values]))
        second = (delta.keys, np.zeros_like(delta.sums), delta.hash_counts - hashes, delta.value_counts - values)
    return (
        _piece(delta, *first, slice(hashes), slice(values)),
        _piece(delta, *second, slice(hashes, None), slice(values, None)),
    )


def _piece(
    whole: Delta, keys: list[Key], sums: I64, hash_counts: I64, value_counts: I64, hashes: slice, values: slice
) -> Delta:
    runs = (hash_counts, whole.hashes[hashes], value_counts, whole.values[values])
    return Delta(whole.hour, whole.version, keys, sums, *runs)


def decode_delta(hour: int, value: bytes) -> Delta:
    """The inverse of `encode_delta`."""
    record = _decoder.decode(value)
    keys = list(zip(record.paths, record.methods, record.classes, record.groups, strict=True))
    return Delta(
        hour,
        record.version,
        keys,
        np.frombuffer(record.sums, "<i8").reshape(6, len(keys)),
        np.frombuffer(record.hash_counts, "<u4").astype(np.int64),
        np.frombuffer(record.hashes, "<u4"),
        np.frombuffer(record.value_counts, "<u4").astype(np.int64),
        np.frombuffer(record.values, "<f4"),
    )


class PathCap:
    """Which paths an hour keeps by name: the first `limit` distinct ones, the rest count under `{other}`.

    Judged in the order in which paths first appear in the log, so that a replay, however its batches are split, decides
    the same.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._seen: dict[int, set[str]] = {}

    def note(self, hour: int, path: str) -> None:
        """A path that restored state holds."""
        if path != OTHER:
            self._seen.setdefault(hour, set()).add(path)

    def admit(self, hour: int, path: str) -> str:
        """The name under which a path is counted."""
        seen = self._seen.setdefault(hour, set())
        if path in seen:
            return path
        # A real path of that name counts with the overflow, and takes no place, for a restore cannot tell the two.
        if path == OTHER or len(seen) >= self._limit:
            return OTHER
        seen.add(path)
        return path

    def forget(self, hour: int) -> None:
        """The hour is closed."""
        self._seen.pop(hour, None)

    def count(self) -> int:
        """Distinct (hour, path) pairs held."""
        return sum(map(len, self._seen.values()))


def deltas(
    parts: list[Rows],
    names: Dictionaries,
    dimensions: tuple[str, ...],
    paths: Sequence[str],
    cap: PathCap,
    version: int,
) -> list[Delta]:
    """Group accepted rows by (hour, path, method, status class, dimensions). `paths[c]` names the rows of path code c."""
    numbers = joined([part.numbers for part in parts])
    status = numbers[native.STATUS]
    hours, hour_of = native.group(numbers[native.TIMESTAMP] // HOUR_MS)
    place = _admitted(hours, hour_of, joined([part.path for part in parts]), paths, cap)
    groups, group_of = _groups(parts, names, dimensions)
    fields = [place.code, joined([part.method for part in parts]), status // 100, group_of]
    sizes = [len(place.names), len(names.method), 6, len(groups)]
    combined = fields[0]
    for field, size in zip(fields[1:], sizes[1:], strict=True):
        combined = combined * size + field
    distinct, group = native.group(combined)
    keyed = _Keyed(distinct, sizes, place, names.method.array().to_pylist(), groups)
    return _by_hour(parts, names, group, numbers, keyed, version)


@dataclass(slots=True)
class _Places:
    """Distinct (hour, admitted path) pairs: `code` tells each row's pair."""

    names: list[tuple[int, str]]
    code: I64


def _admitted(hours: I64, hour_of: I64, path: npt.NDArray[np.int32], paths: Sequence[str], cap: PathCap) -> _Places:
    distinct, pair = native.group(hour_of * len(paths) + path)
    names: dict[tuple[int, str], int] = {}
    codes = np.empty(len(distinct), dtype=np.int64)
    for i, combined in enumerate(distinct.tolist()):
        hour = int(hours[combined // len(paths)])
        name = (hour, cap.admit(hour, paths[combined % len(paths)]))
        codes[i] = names.setdefault(name, len(names))
    return _Places(list(names), codes[pair])


def _groups(parts: list[Rows], names: Dictionaries, dimensions: tuple[str, ...]) -> tuple[list[tuple[str, ...]], Any]:
    """The distinct values of the configured dimensions, and each row's place among them."""
    if not dimensions:
        return [()], 0
    said = [_group({}, dimensions), *(_group(labels, dimensions) for labels in names.labels_of())]
    places = {group: place for place, group in enumerate(dict.fromkeys(said))}
    place_of = np.array([places[group] for group in said], dtype=np.int64)
    return list(places), place_of[joined([part.labels for part in parts]) + 1]


def _group(labels: dict[str, str], dimensions: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(text for name in dimensions for text in (name, labels.get(name, "")))


class _Keyed:
    """The keys behind combined codes, sorted by hour: `order` lists the groups, `rank` is its inverse."""

    def __init__(
        self, distinct: I64, sizes: list[int], place: _Places, methods: list[str], groups: list[tuple[str, ...]]
    ) -> None:
        rest, dimension = np.divmod(distinct, sizes[3])
        rest, status_class = np.divmod(rest, sizes[2])
        place_code, method = np.divmod(rest, sizes[1])
        hours = np.array([place.names[code][0] for code in place_code.tolist()], dtype=np.int64)
        self.order = np.argsort(hours, kind="stable")
        self.rank = np.empty_like(self.order)
        self.rank[self.order] = np.arange(len(self.order))
        self.hours = hours[self.order]
        columns = zip(
            place_code[self.order].tolist(),
            method[self.order].tolist(),
            status_class[self.order].tolist(),
            dimension[self.order].tolist(),
            strict=True,
        )
        self.keys: list[Key] = [(place.names[p][1], methods[m], c, groups[d]) for p, m, c, d in columns]


def _by_hour(
    parts: list[Rows], names: Dictionaries, group: I64, numbers: I64, keyed: _Keyed, version: int
) -> list[Delta]:
    key = keyed.rank[group]
    count = len(keyed.keys)
    ms = joined([part.response_ms for part in parts])
    # No number is no time; cast as it is, it would be whatever the processor makes of it.
    us = np.rint(np.nan_to_num(ms * 1000, nan=-1.0)).astype(np.int64)
    sums = native.sums_of(key, numbers[native.STATUS], numbers[native.BYTES], us, count)
    hash_counts, hashes = _hashes(parts, names, key, count)
    value_counts = sums[TIMED].copy()
    values = native.dealt(key, ms, value_counts)
    hash_ends = np.concatenate([[0], np.cumsum(hash_counts)])
    value_ends = np.concatenate([[0], np.cumsum(value_counts)])
    found = []
    starts = np.flatnonzero(np.diff(keyed.hours, prepend=-1))
    for a, b in zip(starts.tolist(), [*starts[1:].tolist(), count], strict=True):
        found.append(
            Delta(
                int(keyed.hours[a]),
                version,
                keyed.keys[a:b],
                np.ascontiguousarray(sums[:, a:b]),
                hash_counts[a:b],
                hashes[hash_ends[a] : hash_ends[b]],
                value_counts[a:b],
                values[value_ends[a] : value_ends[b]],
            )
        )
    return found


def _hashes(parts: list[Rows], names: Dictionaries, key: I64, count: int) -> tuple[I64, U32]:
    """The distinct address hashes of each key, ascending."""
    offsets, data = names.ip.buffers()
    hashes = uniq_hash(data, offsets)
    pairs = key.astype(np.uint64) << np.uint64(32)
    pairs |= hashes[joined([part.ip for part in parts])]
    pairs.sort()
    first = np.ones(len(pairs), dtype=bool)
    np.not_equal(pairs[1:], pairs[:-1], out=first[1:])
    pairs = pairs[first]
    counts = np.bincount((pairs >> np.uint64(32)).astype(np.int64), minlength=count)
    return counts, (pairs & np.uint64(0xFFFFFFFF)).astype(np.uint32)
