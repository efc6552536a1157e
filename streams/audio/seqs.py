"""Sets of seqs as sorted ranges, first and last included: `[[0, 41], [43, 99]]`."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence

Ranges = list[list[int]]


def add(ranges: Ranges, seq: int) -> bool:
    """Take `seq` in; False when it is there already."""
    if ranges and ranges[-1][1] == seq - 1:  # the next one in order, as nearly all are
        ranges[-1][1] = seq
        return True
    at = bisect_right(ranges, seq, key=_first)
    before = ranges[at - 1] if at else None
    if before is not None and seq <= before[1]:
        return False
    joins_before = before is not None and before[1] == seq - 1
    joins_after = at < len(ranges) and ranges[at][0] == seq + 1
    if joins_before and joins_after:
        assert before is not None
        before[1] = ranges.pop(at)[1]
    elif joins_before:
        assert before is not None
        before[1] = seq
    elif joins_after:
        ranges[at][0] = seq
    else:
        ranges.insert(at, [seq, seq])
    return True


def contains(ranges: Ranges, seq: int) -> bool:
    """Whether `seq` is in one of them."""
    if not ranges or seq > ranges[-1][1]:
        return False
    at = bisect_right(ranges, seq, key=_first)
    return at > 0 and seq <= ranges[at - 1][1]


def count(ranges: Iterable[Sequence[int]]) -> int:
    """How many seqs they hold."""
    return sum(last - first + 1 for first, last in ranges)


def union(ranges: Iterable[Sequence[int]]) -> list[tuple[int, int]]:
    """Ranges of any order, none overlapping, joined where they touch."""
    joined: list[tuple[int, int]] = []
    for first, last in sorted((first, last) for first, last in ranges):
        if joined and joined[-1][1] == first - 1:
            joined[-1] = (joined[-1][0], last)
        else:
            joined.append((first, last))
    return joined


def gaps(ranges: Iterable[Sequence[int]]) -> list[tuple[int, int]]:
    """What lies before, and between, ranges that are in order; a session's first seq is 0."""
    return list(_gaps(ranges))


def _gaps(ranges: Iterable[Sequence[int]]) -> Iterator[tuple[int, int]]:
    expected = 0
    for first, last in ranges:
        if first > expected:
            yield expected, first - 1
        expected = last + 1


def next_in_order(ranges: Ranges) -> int:
    """The first seq that is not there."""
    return ranges[0][1] + 1 if ranges and ranges[0][0] == 0 else 0


def _first(found: list[int]) -> int:
    return found[0]
