"""States of ClickHouse's `uniq(String)` for many keys at once.

ClickHouse's BJKST sketch keeps the distinct 32-bit hashes of a key while at most CAP of them are held; beyond, only
those divisible by 2^d, for the smallest d that suffices. That d depends on the set alone, so a state does too: neither
the order of the hashes nor how they were split into adds shows.
"""

import numpy as np
import numpy.typing as npt

from streams.sketches.varint import varint

U8 = npt.NDArray[np.uint8]
U32 = npt.NDArray[np.uint32]
U64 = npt.NDArray[np.uint64]
I64 = npt.NDArray[np.int64]
Keys = npt.NDArray[np.integer]

# ClickHouse's own limit (UNIQUES_HASH_MAX_SIZE): it refuses to read a state that holds more.
CAP = 65_536
# Rows gathered unsorted before they are sorted and merged; 1 MiB, so that the sort stays in the second-level cache.
PENDING_ROWS = 131_072
# `recent` is merged into `base` once it holds this share of it, so each hash is moved only a few times.
RECENT_SHARE = 4

HALF = np.uint64(0xFFFFFFFF)
KEY_SHIFT = np.uint64(32)


class UniqSets:
    """The sets of many keys; a key is a row number, dense from 0, chosen by the caller.

    A hash is held as (key << 32 | hash) in one of two sorted arrays of distinct values, or in a short unsorted list of
    new rows. `base` is thinned by the degrees, the others may yet hold what a degree will drop. Not thread-safe.
    """

    def __init__(self) -> None:
        self._base: U64 = np.empty(0, np.uint64)
        self._recent: U64 = np.empty(0, np.uint64)
        self._pending: list[U64] = []
        self._pending_rows = 0
        self._degrees: U8 = np.zeros(0, np.uint8)

    def add(self, keys: U32, hashes: U32) -> None:
        """Add hash i (of `cityhash.uniq_hash`) to the set of key i; both uint32[n], in any order."""
        if not len(keys):
            return
        self._reserve(int(keys.max()) + 1)
        rows = keys.astype(np.uint64)
        rows <<= KEY_SHIFT
        rows |= hashes
        self._pending.append(rows)
        self._pending_rows += len(rows)
        if self._pending_rows >= PENDING_ROWS:
            self._settle()

    def states(self, keys: Keys) -> list[bytes]:
        """The ClickHouse `uniq` state of each of n keys: degree, varint count, the hashes as uint32 little-endian."""
        degrees, counts, bodies = self._sets(keys)
        heads = zip(degrees.tolist(), counts.tolist(), bodies, strict=True)
        return [bytes([degree]) + varint(count) + body for degree, count, body in heads]

    def counts(self, keys: Keys) -> I64:
        """About how many distinct values each of n keys has seen, int64[n]; exact up to CAP, save for equal hashes."""
        degrees, counts, _ = self._sets(keys)
        return counts << degrees

    def dump(self, keys: Keys | None = None) -> bytes:
        """The sets of n keys (by default all, from 0) as bytes for `load`: n, degrees, counts, hashes; little-endian."""
        degrees, counts, bodies = self._sets(np.arange(len(self._degrees)) if keys is None else keys)
        heads = np.array([len(degrees)], "<u4").tobytes() + degrees.tobytes() + counts.astype("<u4").tobytes()
        return heads + b"".join(bodies)

    def load(self, dumped: bytes, keys: Keys | None = None) -> None:
        """Unite with the sets of a dump; its i-th set goes to keys[i] (by default to i)."""
        n = int(np.frombuffer(dumped, "<u4", 1)[0])
        degrees = np.frombuffer(dumped, np.uint8, n, 4)
        counts = np.frombuffer(dumped, "<u4", n, 4 + n)
        hashes = np.frombuffer(dumped, "<u4", -1, 4 + 5 * n)
        into = np.arange(n) if keys is None else keys
        if n:
            self._reserve(int(into.max()) + 1)
            self.add(np.repeat(into.astype(np.uint32), counts), hashes)
            if (degrees > self._degrees[into]).any():
                self._degrees[into] = np.maximum(self._degrees[into], degrees)
                self._settle()
                self._unite()

    def _reserve(self, size: int) -> None:
        if size > len(self._degrees):
            self._degrees = np.concatenate([self._degrees, np.zeros(size - len(self._degrees), np.uint8)])

    def _settle(self) -> None:
        """Sort the new rows into `recent`, and that into `base` once it is large."""
        if not self._pending:
            return
        rows = _thinned(np.concatenate(self._pending), self._degrees)
        self._pending, self._pending_rows = [], 0
        rows.sort()
        self._recent = _united(self._recent, _distinct(rows))
        if len(self._recent) * RECENT_SHARE >= len(self._base):
            self._unite()

    def _unite(self) -> None:
        self._base, self._degrees = _capped(_united(self._base, self._recent), self._degrees)
        self._recent = np.empty(0, np.uint64)

    def _sets(self, keys: Keys) -> tuple[U8, I64, list[bytes]]:
        """Degree, count and hashes (ascending uint32) of each of n keys."""
        self._settle()
        self._reserve(int(keys.max(initial=-1)) + 1)
        wanted = keys.astype(np.uint64)
        starts, ends = _bounds(self._base, wanted)
        if 2 * int((ends - starts).sum()) >= len(self._base):
            # Most of the rows are asked for: moving each once is cheaper than picking them.
            if len(self._recent):
                self._unite()
            rows, degrees = self._base, self._degrees[keys]
        else:
            rows = _united(_picked(self._base, wanted), _picked(self._recent, wanted))
            rows, degrees = _capped(rows, self._degrees[keys])
            wanted = np.arange(len(keys), dtype=np.uint64)
        starts, ends = _bounds(rows, wanted)
        first = int(starts.min(initial=len(rows)))
        body = rows[first : int(ends.max(initial=first))].astype("<u4").tobytes()
        bounds = zip((4 * (starts - first)).tolist(), (4 * (ends - first)).tolist(), strict=True)
        return degrees, ends - starts, [body[a:b] for a, b in bounds]


def _distinct(ascending: U64) -> U64:
    if len(ascending) < 2:
        return ascending
    first = np.empty(len(ascending), np.bool_)
    first[0] = True
    np.not_equal(ascending[1:], ascending[:-1], out=first[1:])
    return ascending[first]


def _united(a: U64, b: U64) -> U64:
    """Merge two ascending arrays of distinct values into one."""
    if not len(a) or not len(b):
        return a if len(a) else b
    both = np.concatenate([a, b])
    both.sort(kind="stable")  # timsort: two ascending runs are merged, not sorted
    return _distinct(both)


def _bounds(rows: U64, keys: U64) -> tuple[I64, I64]:
    """Where the rows of each key begin and end."""
    return np.searchsorted(rows, keys << KEY_SHIFT), np.searchsorted(rows, (keys + np.uint64(1)) << KEY_SHIFT)


def _picked(rows: U64, keys: U64) -> U64:
    """The rows of n keys, each key replaced by its place in `keys`."""
    starts, ends = _bounds(rows, keys)
    lengths = ends - starts
    place_ends = np.cumsum(lengths)
    hashes = rows[np.arange(lengths.sum()) + np.repeat(ends - place_ends, lengths)] & HALF
    picked: U64 = hashes | np.repeat(np.arange(len(keys), dtype=np.uint64) << KEY_SHIFT, lengths)
    return picked


def _thinned(rows: U64, degrees: U8) -> U64:
    """Drop the hashes that the degree of their key no longer keeps."""
    if not degrees.any():
        return rows
    masks = (np.uint64(1) << degrees.astype(np.uint64)) - np.uint64(1)
    kept: U64 = rows[rows & masks[rows >> KEY_SHIFT] == 0]
    return kept


def _capped(rows: U64, degrees: U8) -> tuple[U64, U8]:
    """Thin by the degrees, then raise the degree of each key that still holds more than CAP hashes until it does not."""
    rows = _thinned(rows, degrees)
    every = np.arange(len(degrees) + 1, dtype=np.uint64) << KEY_SHIFT
    while (over := np.diff(np.searchsorted(rows, every)) > CAP).any():
        degrees = degrees + over.astype(np.uint8)
        rows = _thinned(rows, degrees)
    return rows, degrees
