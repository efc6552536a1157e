"""Sorted runs of 128-bit ids: their columns, the filter that lets absent ids skip a run, look-up and merge. Pure.

A run is 18 bytes an id (two halves of the id and the hour it expires) and 1 or 2 bytes of filter. Ids are uniform hashes; ids
that are not cost time, never exactness.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

U64 = npt.NDArray[np.uint64]
U16 = npt.NDArray[np.uint16]
Indices = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]

ID_BYTES = 18
_DENSE, _SPARSE = 8, 4
# Merges go by pieces that stay in the processor's cache.
_PIECE_IDS = 1 << 16
_32 = np.uint64(32)
_LOW_16 = np.uint64(0xFFFF)


def _marks_table() -> U64:
    """For each 16 bits of an id the four bits that mark it in a filter word."""
    spread = np.arange(1, 65537, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    table = np.zeros(65536, dtype=np.uint64)
    for shift in (58, 52, 46, 40):
        table |= np.uint64(1) << ((spread >> np.uint64(shift)) & np.uint64(63))
    return table


_MARKS = _marks_table()


class Columns(NamedTuple):
    """Ids as columns of one length, sorted by `hi`; `expiry` is the code of the hour after which an id is dropped."""

    hi: U64
    lo: U64
    expiry: U16

    @property
    def nbytes(self) -> int:
        return self.hi.nbytes + self.lo.nbytes + self.expiry.nbytes

    def live(self, floor: int) -> Columns:
        """The ids whose expiry is `floor` or later."""
        if not len(self.expiry) or int(self.expiry.min()) >= floor:
            return self
        keep = self.expiry >= floor
        return Columns(self.hi[keep], self.lo[keep], self.expiry[keep])


class Needles(NamedTuple):
    """Ids to look up, sorted by `hi`, with their filter marks, which are the same for every run."""

    hi: U64
    lo: U64
    marks: U64


def needles(hi: U64, lo: U64) -> Needles:
    """Ids sorted by `hi`, made ready to be looked up in many runs."""
    return Needles(hi, lo, marks(lo))


def marks(lo: U64) -> U64:
    """The filter bits of ids, by their lower halves."""
    return _MARKS.take((lo & _LOW_16).view(np.int64))


def halves(digests: npt.NDArray[np.uint8]) -> tuple[U64, U64]:
    """The two 64-bit halves of (n, 16) digests."""
    words = np.ascontiguousarray(digests).view("<u8")
    return words[:, 0], words[:, 1]


def sorted_order(hi: U64, lo: U64) -> Indices:
    """The order that sorts ids by `hi` with equal ids adjacent and, among them, the first record first.

    Sorting by the top 16 bits (a radix sort) leaves little for the second, stable pass: 7 ns an id against 35.
    """
    rough = np.argsort((hi >> np.uint64(48)).astype(np.uint16), kind="stable")
    order: Indices = rough[np.argsort(hi[rough], kind="stable")]
    tied, one = ties(hi[order], lo[order])
    if int(tied.sum()) != int(one.sum()):
        order = np.lexsort((lo, hi))
    return order


def ties(hi: U64, lo: U64) -> tuple[Mask, Mask]:
    """Of n sorted ids, for each but the first: whether its `hi`, and whether all of it, equals the one before."""
    tied = hi[1:] == hi[:-1]
    return tied, tied & (lo[1:] == lo[:-1])


class Filter:
    """A Bloom filter of 64-bit words, each for neighbours in order of `hi`.

    A sparse one has a word for 4 ids (2 bytes an id, 0.5 % of absent ids pass), a dense one for 8 (1 byte, 3.4 %).
    Words follow the order of the ids, so sorted needles walk it once, and a file written in order fills it in order.
    """

    __slots__ = ("words",)

    def __init__(self, ids: int, *, dense: bool) -> None:
        self.words: U64 = np.zeros(ids // (_DENSE if dense else _SPARSE) + 1, dtype=np.uint64)

    def add(self, hi: U64, lo: U64) -> None:
        """Mark ids sorted by `hi`."""
        if len(hi):
            word = self._word(hi)
            starts = np.flatnonzero(np.concatenate(([True], word[1:] != word[:-1])))
            self.words[word[starts]] |= np.bitwise_or.reduceat(marks(lo), starts)

    def passing(self, wanted: Needles) -> Indices:
        """Which needles the run may hold."""
        return np.flatnonzero(self.words.take(self._word(wanted.hi)) & wanted.marks == wanted.marks)

    def _word(self, hi: U64) -> Indices:
        return ((hi >> _32) * np.uint64(len(self.words)) >> _32).view(np.int64)


class Run:
    """Ids sorted by their upper half, in memory. `counts` says how many expire at each hour code."""

    __slots__ = ("columns", "counts", "filter")

    def __init__(self, columns: Columns, filter_: Filter, counts: dict[int, int]) -> None:
        self.columns = columns
        self.filter = filter_
        self.counts = counts

    def __len__(self) -> int:
        return len(self.columns.hi)

    @property
    def nbytes(self) -> int:
        """Bytes of memory."""
        return self.columns.nbytes + self.filter.words.nbytes

    def live(self, floor: int) -> int:
        """How many ids expire at `floor` or later."""
        return sum(count for code, count in self.counts.items() if code >= floor)

    def slice(self, start: int, stop: int) -> Columns:
        """The ids from `start` to `stop` in order."""
        hi, lo, expiry = self.columns
        return Columns(hi[start:stop], lo[start:stop], expiry[start:stop])

    def lower_bound(self, hi: U64) -> Indices:
        """Where each of some sorted halves stands, or would."""
        return np.searchsorted(self.columns.hi, hi)

    def held(self, wanted: Needles, floor: int) -> Indices:
        """Which needles are in this run and expire at `floor` or later."""
        maybe = self.filter.passing(wanted)
        if not len(maybe):
            return maybe
        here, at = self._find(wanted.hi[maybe], wanted.lo[maybe])
        return maybe[here[self.columns.expiry[at] >= floor]]

    def _find(self, hi: U64, lo: U64) -> tuple[Indices, Indices]:
        """The needles that are here and where; walks on over ids that share the upper half."""
        columns, at, found = self.columns, self.lower_bound(hi), []
        # A needle past the end is clipped to the last id, which is less.
        left = np.flatnonzero(columns.hi.take(at, mode="clip") == hi)
        while len(left):
            equal = columns.lo[at[left]] == lo[left]
            found.append(left[equal])
            left = left[~equal]
            at[left] += 1
            left = left[at[left] < len(self)]
            left = left[columns.hi[at[left]] == hi[left]]
        here = np.concatenate(found) if found else left
        return here, at[here]


def run_of(columns: Columns) -> Run:
    """A run in memory of sorted, distinct ids."""
    filter_ = Filter(len(columns.hi), dense=False)
    filter_.add(columns.hi, columns.lo)
    return Run(columns, filter_, count_codes(columns.expiry))


def merge(runs: Sequence[Run], floor: int) -> Run:
    """One run in memory of the ids of several that expire at `floor` or later."""
    merging = Merging(runs, floor)
    size = sum(merging.counts.values())
    whole = Columns(np.empty(size, np.uint64), np.empty(size, np.uint64), np.empty(size, np.uint16))
    filter_, at = Filter(size, dense=False), 0
    while not merging.done:
        part = merging.next(_PIECE_IDS)
        span = slice(at, at := at + len(part.hi))
        whole.hi[span], whole.lo[span], whole.expiry[span] = part
        filter_.add(part.hi, part.lo)
    return Run(whole, filter_, merging.counts)


class Merging:
    """Runs on their way into one, in order and a few ids at a time; ids that expire before `floor` are left out.

    The runs hold no live id twice, so nothing is compared but the order.
    """

    def __init__(self, runs: Sequence[Run], floor: int) -> None:
        self.runs = runs
        self.counts = add_counts((run.counts for run in runs), floor)
        self._floor = floor
        self._cursors = [0] * len(runs)

    @property
    def done(self) -> bool:
        """Whether every id was given."""
        return all(cursor == len(run) for cursor, run in zip(self._cursors, self.runs, strict=True))

    def next(self, ids: int) -> Columns:
        """About `ids` more ids: those of every run up to a bound chosen in the run that has most left."""
        left = [len(run) - cursor for cursor, run in zip(self._cursors, self.runs, strict=True)]
        most = left.index(max(left))
        share = max(1, ids * left[most] // sum(left))
        bound = self.runs[most].columns.hi[min(self._cursors[most] + share, len(self.runs[most])) - 1]
        stops = [int(np.searchsorted(run.columns.hi, bound, side="right")) for run in self.runs]
        parts = [run.slice(*span) for run, *span in zip(self.runs, self._cursors, stops, strict=True)]
        self._cursors = stops
        return _in_order(parts).live(self._floor)


def _in_order(parts: Sequence[Columns]) -> Columns:
    # A stable sort of sorted parts is a merge.
    hi, lo, expiry = (np.concatenate(pieces) for pieces in zip(*parts, strict=True))
    order = np.argsort(hi, kind="stable")
    return Columns(hi[order], lo[order], expiry[order])


def count_codes(expiry: U16) -> dict[int, int]:
    """How many ids bear each code."""
    if not len(expiry):
        return {}
    least = int(expiry.min())
    counts = np.bincount(expiry - np.uint16(least))
    return {least + code: int(counts[code]) for code in np.flatnonzero(counts).tolist()}


def add_counts(every: Iterable[dict[int, int]], floor: int) -> dict[int, int]:
    """The sum of counts by code, from `floor` on."""
    total: dict[int, int] = {}
    for counts in every:
        for code, count in counts.items():
            if code >= floor:
                total[code] = total.get(code, 0) + count
    return total
