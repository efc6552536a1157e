"""The traffic core in the shape that the runtime asks for."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from streams.runtime.fold import Materialisation, Position
from streams.traffic import core
from streams.traffic.dedup import DedupIndex
from streams.traffic.rollup import Part
from topics.records import Batch, Emit, Flush

#: Keys of one rollup insert: enough to be cheap, few enough not to hold the loop for long.
ROLLUP_KEYS = 4_000
#: A record open for the next flush counts as one row up to so many bytes; most weigh a third of it.
ROW_BYTES = 1_024


@dataclass
class _Pass:
    """What is still to be written of the keys that were dirty at `version`."""

    version: int
    parts: list[Part]


def _parts(dirty: Part) -> list[Part]:
    """The keys in parts of at most ROLLUP_KEYS, each of as many hours as fit."""
    parts: list[Part] = []
    room = 0
    for hour, rows in dirty:
        at = 0
        while at < len(rows):
            if room == 0:
                parts.append([])
                room = ROLLUP_KEYS
            piece = rows[at : at + room]
            parts[-1].append((hour, piece))
            at, room = at + len(piece), room - len(piece)
    return parts


class TrafficFold:
    """Implements `streams.runtime.fold.Fold` over `core`."""

    def __init__(self, rules: core.TrafficRules, ids: DedupIndex) -> None:
        self.state = core.new_state(rules, ids)
        self._position = Position(0, 0)
        self._clock_ms = 0
        self._totals: Counter[str] = Counter()
        self._pass: _Pass | None = None

    def restore(self, records: Sequence[tuple[bytes, bytes | None]]) -> None:
        """See `Fold`."""
        core.restore(self.state, records)

    def restored(self, position: Position) -> None:
        """See `Fold`."""
        core.restored(self.state)
        self._position = position
        self._clock_ms, self._totals = self.state.clock_ms, Counter(self.state.totals)

    def step(self, batch: Batch) -> None:
        """See `Fold`."""
        core.step(self.state, batch)

    def seal(self, position: Position) -> Flush:
        """See `Fold`."""
        flush = core.seal(self.state, position.offset, position.version)
        flush.token = (position, flush.token)
        return flush

    def committed(self, flush: Flush) -> None:
        """See `Fold`."""
        self._position, sealed = flush.token
        core.committed(self.state, sealed)
        self._clock_ms, self._totals = sealed.clock_ms, sealed.totals

    def undone(self) -> Sequence[Any]:
        """See `Fold`: events ask for nothing."""
        return ()

    def idle(self) -> Emit | None:
        """See `Fold`: an hour that ends late ends all the same."""
        return None

    def materialise(self) -> Materialisation | None:
        """See `Fold`. A pass goes over the keys that were dirty when it began; None ends it."""
        if self._pass is None:
            self._pass = _Pass(self._position.version, _parts(self.state.rollups.dirty()))
        if not self._pass.parts:
            self.state.materialised = self._pass.version
            self._pass = None
            return None
        part = self._pass.parts.pop()
        table = self.state.rollups.table(part, self._position.version)
        return Materialisation(self._position, {"path_stats_hourly_rows": table}, part)

    def materialised(self, done: Materialisation) -> None:
        """See `Fold`."""
        self.state.rollups.clean(done.token, done.position.version)

    @property
    def open_rows(self) -> int:
        """See `Fold`."""
        state = self.state
        return max(state.row_count + len(state.emits) + len(state.dead), state.open_bytes // ROW_BYTES)

    @property
    def unwritten_bytes(self) -> int:
        """See `Fold`: not counted, a key's rollups are one row however often it changes, and are in the state as well."""
        return 0

    def figures(self) -> Mapping[str, float]:
        """See `Fold`. Outcomes and clock are of what is committed."""
        state = self.state
        return {
            **{f"outcome_{name}": float(count) for name, count in self._totals.items()},
            "append_ms": float(self._clock_ms),
            "ids": float(len(state.ids)),
            "ids_bytes": float(state.ids.bytes_held),
            "ids_bytes_spilled": float(state.ids.bytes_spilled),
            "rollup_keys": float(state.rollups.key_count()),
            "paths": float(state.cap.count()),
        }
