"""What ClickHouse must say, computed apart from the pipeline: plain dicts over the records as they were produced."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

HOUR_MS = 3_600_000


class Record(NamedTuple):
    """One record of the source topic: the event_id and the event as JSON."""

    key: bytes
    value: bytes


class Key(NamedTuple):
    """One row of `path_stats_hourly`; `hour` counts from the epoch."""

    hour: int
    path: str
    method: str
    status_class: str


class Sums(NamedTuple):
    """What must be exact."""

    requests: int
    errors: int
    bytes: int

    def plus(self, other: Sums) -> Sums:
        """The sum of both."""
        return Sums(*(mine + its for mine, its in zip(self, other, strict=True)))


class Truth:
    """Every distinct event once, in sums by key."""

    def __init__(self, records: Iterable[Record] = ()) -> None:
        self.stats: dict[Key, Sums] = {}
        self.ids: set[bytes] = set()
        for record in records:
            self.add(record)

    def add(self, record: Record) -> None:
        """Count an event unless its id was counted before."""
        if record.key in self.ids:
            return
        self.ids.add(record.key)
        event = json.loads(record.value)
        status = event["status"]
        key = Key(event["timestamp_ms"] // HOUR_MS, event["path"], event["method"], f"{status // 100}xx")
        self.stats[key] = self.stats.get(key, Sums(0, 0, 0)).plus(Sums(1, int(status >= 500), event["bytes"]))


def renamed(stats: Mapping[Key, Sums], name: Callable[[str], str]) -> dict[Key, Sums]:
    """The same sums with every path under its new name."""
    found: dict[Key, Sums] = {}
    for key, sums in stats.items():
        under = key._replace(path=name(key.path))
        found[under] = found.get(under, Sums(0, 0, 0)).plus(sums)
    return found
