"""Accepted chunks that are in no segment yet, as columns: a session has hundreds, and a worker hundreds of sessions.

One object a chunk would cost ten times the memory, and sessions that began together are cut together: a cut that has to
visit each object in memory takes a millisecond.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from streams.audio import seqs


class Piece(NamedTuple):
    """One chunk, as a snapshot keeps it."""

    seq: int
    offset: int
    append_ms: int
    size: int
    duration_us: int


class Run(NamedTuple):
    """Consecutive seqs, first and last included, and the offsets among which their records lie."""

    first_seq: int
    last_seq: int
    first_offset: int
    last_offset: int
    size: int
    duration_us: int


class Pending:
    """Chunks in the order of the log. `duration_us` is of them all."""

    __slots__ = ("_append_ms", "_durations_us", "_offsets", "_ordered", "_ranges", "_seqs", "_sizes", "duration_us")

    def __init__(self, pieces: Iterable[Piece] = ()) -> None:
        self._ordered = True  # by seq too
        self.duration_us = 0
        self._fill(pieces)

    def __len__(self) -> int:
        return len(self._seqs)

    def __iter__(self) -> Iterator[Piece]:
        return self._pieces(0)

    def add(self, piece: Piece) -> None:
        """Take a chunk in; its offset is the highest."""
        self._ordered = self._ordered and (not self._seqs or piece.seq > self._seqs[-1])
        self._seqs.append(piece.seq)
        self._offsets.append(piece.offset)
        self._append_ms.append(piece.append_ms)
        self._sizes.append(piece.size)
        self._durations_us.append(piece.duration_us)
        self.duration_us += piece.duration_us
        seqs.add(self._ranges, piece.seq)

    @property
    def runs(self) -> int:
        """How many runs of consecutive seqs they are: a cut of them all makes so many segments."""
        return len(self._ranges)

    @property
    def oldest_ms(self) -> int:
        """When the first of them was appended."""
        return self._append_ms[0]

    @property
    def first_seq(self) -> int:
        """The lowest seq."""
        return self._seqs[0] if self._ordered else min(self._seqs)

    def offset_of(self, seq: int) -> int | None:
        """Where a chunk's record lies; None if it is not here."""
        try:
            return self._offsets[self._seqs.index(seq)]
        except ValueError:
            return None

    def first_offset_from(self, offset: int) -> int | None:
        """The lowest offset at or above `offset`."""
        return next((found for found in self._offsets if found >= offset), None)

    def cut(self, late_us: int | None, due_ms: int) -> list[Run]:
        """Take runs of consecutive seqs out, in their order.

        All of them if `late_us` is None; otherwise the newest `late_us` of audio stay for late chunks to join, as far as
        they were appended after `due_ms`.
        """
        if not self._ordered:
            self._fill(sorted(self))
        end = len(self) if late_us is None else self._end(late_us, due_ms)
        found = [self._run(first, last) for first, last in _stretches(self._seqs[:end])]
        self._fill(sorted(self._pieces(end), key=lambda piece: piece.offset))
        return found

    def _pieces(self, first: int) -> Iterator[Piece]:
        columns = (self._seqs, self._offsets, self._append_ms, self._sizes, self._durations_us)
        return map(Piece, *(column[first:] for column in columns))

    def _fill(self, pieces: Iterable[Piece]) -> None:
        pieces = list(pieces)
        self._seqs, self._offsets, self._append_ms = array("q"), array("q"), array("q")
        self._sizes, self._durations_us = array("q"), array("q")
        self._ranges: seqs.Ranges = []
        self._ordered, self.duration_us = True, 0
        for piece in pieces:
            self.add(piece)

    def _end(self, late_us: int, due_ms: int) -> int:
        at, held_us = len(self), 0
        while at > 0:
            held_us += self._durations_us[at - 1]
            if self._append_ms[at - 1] <= due_ms or held_us > late_us:
                break
            at -= 1
        return at

    def _run(self, first: int, end: int) -> Run:
        offsets = self._offsets[first:end]
        return Run(
            self._seqs[first],
            self._seqs[end - 1],
            min(offsets),
            max(offsets),
            sum(self._sizes[first:end]),
            sum(self._durations_us[first:end]),
        )


def _stretches(seqs: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Where runs of consecutive seqs begin and end, of seqs in order."""
    if seqs and seqs[-1] - seqs[0] < len(seqs):
        yield 0, len(seqs)
        return
    first = 0
    for at in range(1, len(seqs) + 1):
        if at == len(seqs) or seqs[at] != seqs[at - 1] + 1:
            yield first, at
            first = at
