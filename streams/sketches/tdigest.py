"""States of ClickHouse's `quantilesTDigest` for many keys at once.

A merging t-digest whose state depends on the sequence of a key's values alone, not on how it was split into adds: a key
takes its values into its centroids TAIL at a time, and keeps the rest as they came.
"""

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from streams.sketches.centroids import BUCKETS, F32, I64, PADDING, U32, U64, compressed, means_of, packed, weights_of
from streams.sketches.varint import varint

Keys = npt.NDArray[np.integer]

# Values of one key that are compressed together.
TAIL = 512
# Rows gathered before they are dealt out to their keys.
PENDING_ROWS = 131_072
# Cells of the matrices compressed at a time: temporaries of 96 KiB stay in the cache and in malloc's own pool.
CHUNK_CELLS = 12_288


class TDigests:
    """The digests of many keys; a key is a row number, dense from 0, chosen by the caller.

    The tails of all keys lie end to end in one array. Keys with centroids have a slot, a row of one matrix; slot 0 is
    the empty digest of the others. Not thread-safe.
    """

    def __init__(self) -> None:
        self._pending: list[tuple[U32, F32]] = []
        self._pending_rows = 0
        self._tails: F32 = np.empty(0, np.float32)
        self._tail_counts: I64 = np.zeros(0, np.int64)
        self._held: npt.NDArray[np.bool_] = np.zeros(0, np.bool_)
        self._slots: I64 = np.zeros(0, np.int64)
        self._centroids: U64 = np.full((1, BUCKETS), PADDING)
        self._centroid_counts: I64 = np.zeros(1, np.int64)

    def add(self, keys: U32, values: F32) -> None:
        """Add value i to the digest of key i, in this order; uint32[n] and float32[n].

        Raises ValueError if a value is negative, infinite or NaN; then none is added.
        """
        if not len(keys):
            return
        if not (values.min() >= 0 and values.max() < np.inf):
            raise ValueError("a digest takes finite values >= 0 only")
        self._reserve(int(keys.max()) + 1)
        self._held[keys] = True
        # Copies, for the batch may be gone when they are read; the zero makes 0.0 of -0.0, whose bits sort last.
        self._pending.append((keys.copy(), values + np.float32(0)))
        self._pending_rows += len(keys)
        if self._pending_rows >= max(PENDING_ROWS, len(self._tails) // 4):
            self._settle()

    def states(self, keys: Keys) -> list[bytes]:
        """The ClickHouse `quantilesTDigest` state of each of n keys: varint count, then (mean, weight) as float32 pairs.

        Centroids ascend by mean; the tail is compressed into a copy of them, or left as it is in a small digest.
        """
        states: list[bytes] = [b"\0"] * len(keys)
        self._settle()
        for chunk in self._chunks(keys):
            centroids, counts = compressed(self._rows(keys[chunk]))
            pairs = np.empty((len(centroids), 2), "<f4")
            pairs[:, 0] = means_of(centroids)
            pairs[:, 1] = weights_of(centroids)
            body, start = pairs.tobytes(), 0
            for place, count in zip(chunk.tolist(), counts.tolist(), strict=True):
                states[place] = varint(count) + body[start : start + 8 * count]
                start += 8 * count
        return states

    def dump(self, keys: Keys | None = None) -> bytes:
        """The digests of n keys (by default all, from 0) as bytes for `load`; little-endian.

        n; centroid counts; tail counts; packed centroids; tails in order of arrival.
        """
        wanted = np.arange(len(self._slots)) if keys is None else keys
        self._reserve(int(wanted.max(initial=-1)) + 1)
        self._settle()
        slots = self._slots[wanted]
        centroid_counts = self._centroid_counts[slots]
        tail_counts = self._tail_counts[wanted]
        head = np.concatenate([[len(wanted)], centroid_counts, tail_counts]).astype("<u4").tobytes()
        centroids = self._centroids.ravel()[_ranges(slots * BUCKETS, centroid_counts)]
        tails = self._tails[_ranges(self._tail_starts()[wanted], tail_counts)]
        return head + centroids.astype("<u8").tobytes() + tails.astype("<f4").tobytes()

    def load(self, dumped: bytes, keys: Keys | None = None) -> None:
        """Put the digests of a dump in place of what is held; its i-th goes to keys[i] (by default to i)."""
        n = int(np.frombuffer(dumped, "<u4", 1)[0])
        centroid_counts, tail_counts = np.frombuffer(dumped, "<u4", 2 * n, 4).reshape(2, n).astype(np.int64)
        body = 4 + 8 * n
        centroids = np.frombuffer(dumped, "<u8", int(centroid_counts.sum()), body)
        tails = np.frombuffer(dumped, "<f4", -1, body + centroids.nbytes)
        into = (np.arange(n) if keys is None else keys).astype(np.uint32)
        if n:
            self._clear(into)
            compressed_once = centroid_counts > 0
            self._store(into[compressed_once], centroids, centroid_counts[compressed_once])
            self._held[into] |= compressed_once
            self.add(np.repeat(into, tail_counts), tails)

    def _clear(self, keys: Keys) -> None:
        """Make the keys empty, unless all of them are."""
        self._reserve(int(keys.max()) + 1)
        if not self._held[keys].any():
            return
        self._settle()
        gone = np.zeros(len(self._slots), np.bool_)
        gone[keys] = True
        self._tails = self._tails[~np.repeat(gone, self._tail_counts)]
        self._tail_counts[gone] = 0
        self._slots[gone] = 0
        self._held[gone] = False

    def _reserve(self, size: int) -> None:
        if size > len(self._slots):
            more = np.zeros(size - len(self._slots), np.int64)
            self._slots = np.concatenate([self._slots, more])
            self._tail_counts = np.concatenate([self._tail_counts, more])
            self._held = np.concatenate([self._held, more.astype(np.bool_)])

    def _tail_starts(self) -> I64:
        return np.cumsum(self._tail_counts) - self._tail_counts

    def _settle(self) -> None:
        """Deal the pending rows out to their keys, and compress the tails that are full."""
        if not self._pending:
            return
        new_keys = np.concatenate([k for k, _ in self._pending])
        new = np.concatenate([v for _, v in self._pending])[_grouping(new_keys)]
        new_counts = np.bincount(new_keys, minlength=len(self._slots))
        self._pending, self._pending_rows = [], 0
        old_counts, counts = self._tail_counts, self._tail_counts + new_counts
        starts = np.cumsum(counts) - counts
        values = np.empty(len(self._tails) + len(new), np.float32)
        values[_ranges(starts, old_counts)] = self._tails
        values[_ranges(starts + old_counts, new_counts)] = new
        self._absorb_full(values, starts, counts)
        self._tail_counts = counts % TAIL
        self._tails = values[_ranges(starts + counts - self._tail_counts, self._tail_counts)]

    def _absorb_full(self, values: F32, starts: I64, counts: I64) -> None:
        """Compress the first, second, ... TAIL values of every key that has as many."""
        blocks = counts // TAIL
        step = max(1, CHUNK_CELLS // (BUCKETS + TAIL))
        for done in range(int(blocks.max(initial=0))):
            full = np.flatnonzero(blocks > done)
            for first in range(0, len(full), step):
                keys = full[first : first + step]
                tails = values[(starts[keys] + done * TAIL)[:, None] + np.arange(TAIL)]
                slots = self._slots[keys]
                held = self._centroids[slots, : self._centroid_counts[slots].max()]
                rows = np.concatenate([held, packed(tails, np.uint32(1))], axis=1)
                self._store(keys, *compressed(rows))

    def _store(self, keys: Keys, centroids: U64, counts: I64) -> None:
        """Put centroids, end to end, in the slots of their keys; each has at least one."""
        new = keys[self._slots[keys] == 0]
        first = len(self._centroid_counts)
        self._slots[new] = np.arange(first, first + len(new))
        self._centroid_counts = np.concatenate([self._centroid_counts, np.zeros(len(new), np.int64)])
        while len(self._centroids) < len(self._centroid_counts):
            self._centroids = np.concatenate([self._centroids, np.empty_like(self._centroids)])
        slots = self._slots[keys]
        self._centroids[slots] = PADDING
        self._centroids.ravel()[_ranges(slots * BUCKETS, counts)] = centroids
        self._centroid_counts[slots] = counts

    def _rows(self, keys: Keys) -> U64:
        """The centroids of each key and its tail, as one row of a matrix."""
        slots, tail_counts = self._slots[keys], self._tail_counts[keys]
        held = int(self._centroid_counts[slots].max())
        width = held + int(tail_counts.max())
        rows = np.full((len(keys), width), PADDING)
        rows[:, :held] = self._centroids[slots, :held]
        tails = self._tails[_ranges(self._tail_starts()[keys], tail_counts)]
        rows.ravel()[_ranges(np.arange(len(keys)) * width + held, tail_counts)] = packed(tails, np.uint32(1))
        return rows

    def _chunks(self, keys: Keys) -> Iterator[I64]:
        """Places in `keys` of digests that are not empty, in groups of similar size that fit a chunk."""
        self._reserve(int(keys.max(initial=-1)) + 1)
        widths = self._centroid_counts[self._slots[keys]] + self._tail_counts[keys]
        order = np.argsort(widths, kind="stable")
        order = order[widths[order] > 0]
        ascending = widths[order]
        start = 0
        while start < len(order):
            similar = int(np.searchsorted(ascending, int(ascending[start]) * 5 // 4, "right"))
            end = min(similar, start + max(1, CHUNK_CELLS // int(ascending[similar - 1])))
            yield order[start:end]
            start = end


def _grouping(keys: U32) -> I64:
    """The order that brings equal keys together and keeps the order within a key."""
    # numpy sorts 16-bit integers by radix, ten times faster than wider ones.
    order = np.argsort(keys.astype(np.uint16), kind="stable")
    high = (keys >> np.uint32(16)).astype(np.uint16)
    return order[np.argsort(high[order], kind="stable")] if high.any() else order


def _ranges(starts: I64, counts: I64) -> I64:
    """Indices starts[i], starts[i] + 1, ... of each of the ranges, end to end."""
    ends = np.cumsum(counts)
    return np.arange(ends[-1] if len(ends) else 0) + np.repeat(starts - ends + counts, counts)
