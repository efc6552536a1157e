"""Drives the traffic fold as the runtime does, with a changelog, a ClickHouse and crashes that are plain values."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from streams.runtime.fold import Position
from streams.traffic import core
from streams.traffic.core import TrafficRules
from streams.traffic.dedup import DedupIndex
from streams.traffic.fold import TrafficFold
from topics.records import Batch, DeadLetter, Emit, Flush, Record

#: 2026-11-20 00:00 UTC, on the hour.
DAY_MS = 1_795_132_800_000
HOUR_MS = 3_600_000

ChangelogRecord = tuple[bytes, bytes | None]


def event(event_id: str | None = "e", timestamp_ms: int = DAY_MS, **fields: Any) -> bytes:
    """A valid event's JSON; `fields` replace the plain ones, and None leaves one out."""
    plain = {
        "event_id": event_id,
        "timestamp_ms": timestamp_ms,
        "method": "GET",
        "path": "/",
        "status": 200,
        "client_ip": "192.0.2.1",
    }
    return json.dumps({k: v for k, v in {**plain, **fields}.items() if v is not None}, ensure_ascii=False).encode()


def batch(records: Sequence[Record], begin: int, end: int, partition: int = 0) -> Batch:
    """One fetch from `begin` to `end`."""
    return Batch.of(core.TRAFFIC_EVENTS, partition, begin, end, records)


def new_fold(rules: TrafficRules) -> TrafficFold:
    """An empty fold with memory enough."""
    return TrafficFold(rules, DedupIndex(memory_bytes=1 << 24, spill=None))


@dataclass
class World:
    """What outlives a process: the committed changelog and outputs, the cursor, and what ClickHouse holds."""

    changelog: list[ChangelogRecord] = field(default_factory=list)
    emits: list[Emit] = field(default_factory=list)
    dead: list[DeadLetter] = field(default_factory=list)
    cursor: int = 0
    events: dict[int, dict[str, Any]] = field(default_factory=dict)
    rollups: dict[tuple[Any, ...], dict[str, Any]] = field(default_factory=dict)

    def compact(self, upto: int, forget: int) -> None:
        """What Kafka's cleaner does: the last word on each key below `upto`, without the tombstones below `forget`."""
        head = self.changelog[:upto]
        last = {key: at for at, (key, _) in enumerate(head)}
        kept = [(k, v) for at, (k, v) in enumerate(head) if last[k] == at and (v is not None or at >= forget)]
        self.changelog = kept + self.changelog[upto:]

    def insert(self, table: Any) -> None:
        """Take rollup rows as ReplacingMergeTree does: the highest version of a key wins."""
        for row in table.to_pylist():
            key = (row["hour"], row["path"], row["method"], row["status_class"], tuple(map(tuple, row["dimensions"])))
            held = self.rollups.get(key)
            if held is None or held["version"] <= row["version"]:
                self.rollups[key] = row

    def answers(self) -> dict[tuple[Any, ...], dict[str, Any]]:
        """The rollups without the versions, which say when a flush was, not what it held."""
        return {key: {k: v for k, v in row.items() if k != "version"} for key, row in self.rollups.items()}


class Process:
    """One life of a worker on one partition."""

    def __init__(self, rules: TrafficRules, world: World) -> None:
        self.rules = rules
        self.world = world
        self.fold = new_fold(rules)
        self.fold.restore(world.changelog)
        self.fold.restored(Position(1, world.cursor))
        self.position = world.cursor

    def read(self, records: Iterable[Record], end: int) -> None:
        """Fold one fetch of the records up to `end`."""
        new = [r for r in records if self.position <= r.offset < end]
        self.fold.step(batch(new, self.position, end, self.rules.partition))
        self.position = end

    def seal(self) -> Flush:
        """Begin a flush and write its raw rows, which come before the transaction."""
        flush = self.fold.seal(Position(1, self.position))
        for table in flush.rows.get("traffic_events_rows", []):
            self.world.events.update((row["source_offset"], row) for row in table.to_pylist())
        return flush

    def commit(self, flush: Flush) -> None:
        """The transaction of a flush, and what the fold does after it."""
        self.world.changelog += flush.changelog
        self.world.emits += flush.emits
        self.world.dead += flush.dead
        self.world.cursor = flush.next_offset
        self.fold.committed(flush)

    def materialise(self, at_most: int = 1_000_000) -> bool:
        """Write changed rollups; after `at_most` inserts the pass is left where it is. True at its end."""
        for _ in range(at_most):
            done = self.fold.materialise()
            if done is None:
                return True
            self.world.insert(done.rows["path_stats_hourly_rows"])
            self.fold.materialised(done)
        return False

    def finish(self) -> None:
        """Flush, end a pass that was left, and write what changed since it began."""
        self.commit(self.seal())
        self.materialise()
        self.materialise()


def ids_held(fold: TrafficFold) -> dict[tuple[int, int], int]:
    """Expiry hour of each id that can still be met, by its digest's halves."""
    ids, now = fold.state.ids, fold.state.clock_ms // HOUR_MS
    len(ids)  # settles what was loaded
    found: dict[tuple[int, int], int] = {}
    for run in ids._runs():
        hi, lo, code = (column.tolist() for column in run.columns)
        found.update(((h, low), c + ids._base) for h, low, c in zip(hi, lo, code, strict=True) if c + ids._base >= now)
    return found


def content(fold: TrafficFold) -> dict[str, Any]:
    """Everything that decides what the fold will do and say, in plain values, of the hours that are still open."""
    state = fold.state
    first_open = (state.clock_ms - state.rules.lateness_h * HOUR_MS) // HOUR_MS
    hours = {hour: rollup for hour, rollup in state.rollups.hours.items() if hour >= first_open}
    keyed: dict[Any, Any] = {}
    for hour, rollup in hours.items():
        rows = np.arange(len(rollup))
        states = zip(rollup.visitors.states(rows), (rollup.times.dump(rows[i : i + 1]) for i in rows), strict=True)
        for key, sums, (visitors, times) in zip(rollup.keys, rollup.sums.T.tolist(), states, strict=False):
            keyed[hour, key] = (sums, visitors, times)
    return {
        "clock": state.clock_ms,
        "totals": dict(+state.totals),
        "ids": ids_held(fold),
        "rollups": keyed,
        "paths": {hour: set(seen) for hour, seen in state.cap._seen.items() if seen and hour >= first_open},
    }
