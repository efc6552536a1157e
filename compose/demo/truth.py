"""What ClickHouse must say, computed apart from the pipeline: plain dictionaries and exact percentiles.

It sees the records that were handed to Kafka and nothing of what became of them.
"""

from __future__ import annotations

import json
from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

QUANTILES = (0.50, 0.95, 0.99)
#: Access logs tell response times in whole milliseconds.
RESOLUTION_MS = 1.0
#: Allowed distance of a percentile: in rank, and in value from VALUE_FROM events on.
RANK_ERROR = 0.01
VALUE_ERROR = 0.01
VALUE_FROM = 50_000
#: Unique addresses are exact up to here, then within UNIQUE_ERROR.
UNIQUE_EXACT = 1_000
UNIQUE_ERROR = 0.03

#: hour as Unix seconds, path
Group = tuple[int, str]


@dataclass
class Expected:
    """The truth of one (hour, path)."""

    requests: int = 0
    bytes: int = 0
    errors: int = 0
    times_ms: array[float] = field(default_factory=lambda: array("d"))
    addresses: set[str] = field(default_factory=set)


@dataclass(frozen=True)
class Found:
    """What ClickHouse says of one (hour, path); quantiles as in QUANTILES, NaN where nothing was timed."""

    requests: int
    bytes: int
    errors: int
    quantiles: Sequence[float]
    unique: int


class Truth:
    """Folds published records: each id once."""

    def __init__(self) -> None:
        self.groups: dict[Group, Expected] = {}
        self.events = 0
        self.duplicates = 0
        self._ids: set[str] = set()

    def add(self, value: bytes) -> None:
        """One valid event's JSON, as it went to Kafka."""
        event = json.loads(value)
        if event["event_id"] in self._ids:
            self.duplicates += 1
            return
        self._ids.add(event["event_id"])
        self.events += 1
        group = (event["timestamp_ms"] // 3_600_000 * 3600, event["path"])
        expected = self.groups.setdefault(group, Expected())
        expected.requests += 1
        expected.bytes += event.get("bytes") or 0
        expected.errors += event["status"] >= 500
        expected.addresses.add(event["client_ip"])
        if event.get("response_time_ms") is not None:
            expected.times_ms.append(event["response_time_ms"])


def counts_agree(truth: Truth, found: Mapping[Group, Found]) -> bool:
    """Whether every group is there with exact requests, bytes and errors, and no other."""
    if truth.groups.keys() != found.keys():
        return False
    return all(_counts(expected) == _counts(found[group]) for group, expected in truth.groups.items())


def _counts(of: Expected | Found) -> tuple[int, int, int]:
    return of.requests, of.bytes, of.errors


def differences(truth: Truth, found: Mapping[Group, Found]) -> list[str]:
    """Every disagreement in a line, empty when there is none."""
    lines = [f"{group}: not expected, but there" for group in found.keys() - truth.groups.keys()]
    for group, expected in truth.groups.items():
        if group not in found:
            lines.append(f"{group}: {expected.requests} requests expected, none found")
        else:
            lines += [f"{group}: {problem}" for problem in _compare(expected, found[group])]
    return lines


def _compare(expected: Expected, found: Found) -> list[str]:
    problems = []
    if _counts(expected) != _counts(found):
        problems.append(f"requests, bytes, errors are {_counts(found)}, not {_counts(expected)}")
    unique, margin = len(expected.addresses), 0.0
    if unique > UNIQUE_EXACT:
        margin = UNIQUE_ERROR * unique
    if abs(found.unique - unique) > margin:
        problems.append(f"unique addresses are {found.unique}, not {unique}")
    if expected.times_ms:
        problems += _compare_times(sorted(expected.times_ms), found.quantiles)
    return problems


def _compare_times(ordered: Sequence[float], quantiles: Sequence[float]) -> list[str]:
    problems = []
    count = len(ordered)
    for q, value in zip(QUANTILES, quantiles, strict=True):
        off = rank_error(ordered, q, value)
        # One event's step is as near as any value can come in a small group.
        if off > max(RANK_ERROR, 1 / count):
            problems.append(f"p{q * 100:.0f} {value:.3f} ms is {off:.1%} off in rank among {count}")
        exact = ordered[min(count - 1, int(q * count))]
        if count >= VALUE_FROM and abs(value - exact) > VALUE_ERROR * exact:
            problems.append(f"p{q * 100:.0f} {value:.3f} ms is not within 1 % of {exact:.3f} ms")
    return problems


def rank_error(ordered: Sequence[float], q: float, value: float) -> float:
    """How far `q` lies outside the ranks that `value` may claim in `ordered`, as a share of all.

    The ranks are widened by a float32's rounding, since that is what a digest holds, and to the nearest observed value if
    that is within the log's own resolution: times are whole milliseconds, dozens of events share one, and an estimate a
    little beside it would pass them all.
    """
    slack = abs(value) * 1e-6 + 1e-9
    at = bisect_left(ordered, value)
    nearest = min(ordered[max(0, at - 1) : at + 1], key=lambda observed: abs(observed - value))
    ends = (value, nearest) if abs(nearest - value) <= RESOLUTION_MS / 2 else (value, value)
    low = bisect_left(ordered, min(ends) - slack) / len(ordered)
    high = bisect_right(ordered, max(ends) + slack) / len(ordered)
    return max(0.0, low - q, q - high)
