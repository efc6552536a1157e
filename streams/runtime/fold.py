"""What the runtime asks of a stream: the fold of one partition, and the sink its rows go to.

A fold is a deterministic function of its partition's log: no clock, no randomness, no I/O. The runtime owns the order of
events around it:

1. `restore` with the changelog's records in log order, then `restored`;
2. `step` for each batch, in offset order, each offset once;
3. `seal` encodes everything folded since the last seal; the fold goes on while that flush is under way;
4. `committed` when the flush's transaction has committed, in seal order. Never called for a flush that failed: the
   process ends instead, and its successor restores. The flush's effects begin then (see `outside`);
5. `undone` after a take-over: the effects whose outcome the log does not hold;
6. `idle` when nothing was read for a while: the record that moves a quiet partition's clock on, if the fold wants it;
7. `materialise` and `materialised`: rows built from committed state only.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from topics.records import Batch, Emit, Flush
from topics.rows import version_of


@dataclass(frozen=True)
class Position:
    """Where a flush stands: the topic's epoch and the next offset to read. Packed, it is the version of what is written."""

    epoch: int
    offset: int

    @property
    def version(self) -> int:
        """See `topics.rows.version_of`: later positions of a re-created topic still win."""
        return version_of(self.epoch, self.offset)


@dataclass(frozen=True)
class Materialisation:
    """Rows of committed state: table name -> pyarrow Table, as of `position`; `token` is the fold's own."""

    position: Position
    rows: Mapping[str, Any]
    token: Any = None


class Fold(Protocol):
    """One partition's state. Synchronous; called from one task at a time."""

    def restore(self, records: Sequence[tuple[bytes, bytes | None]]) -> None:
        """Apply changelog records (key, value or tombstone) in log order."""

    def restored(self, position: Position) -> None:
        """The changelog's end was reached; the fold stands at `position`."""

    def step(self, batch: Batch) -> None:
        """Fold one batch. Total: any record gives a result or a dead letter."""

    def seal(self, position: Position) -> Flush:
        """Encode all that was folded since the last seal; `position` is the flush's own."""

    def committed(self, flush: Flush) -> None:
        """The flush's transaction has committed."""

    def undone(self) -> Sequence[Any]:
        """Effects that were asked for, as far as the restored state can tell, and have no outcome yet."""

    def idle(self) -> Emit | None:
        """A record of the fold's own partition to write, since none came for a while; None where time decides nothing."""

    def materialise(self) -> Materialisation | None:
        """Rows for keys that changed since they were last materialised; None when there are none."""

    def materialised(self, done: Materialisation) -> None:
        """The rows of `done` are durable."""

    @property
    def open_rows(self) -> int:
        """Records folded since the last seal that the next flush will write; heavy ones count as several, since memory
        is bounded by this number."""

    @property
    def unwritten_bytes(self) -> int:
        """Memory of committed rows that wait for `materialise`, about, as far as it grows while the sink is away: past a
        bound no more is folded until they are written."""

    def figures(self) -> Mapping[str, float]:
        """Gauges and counters for metrics and status: totals since the fold began, by name."""


class RowSink(Protocol):
    """A table store. `insert` is durable when it returns and may be repeated without effect."""

    async def insert(self, table: str, data: Any) -> None:
        """Write a pyarrow Table; waits while the store is away, raises only for what can never succeed."""

    @property
    def available(self) -> bool:
        """False while the store is away and inserts wait."""


class ObjectStore(Protocol):
    """Where what does not fit a record goes."""

    async def put(self, key: str, data: bytes) -> None:
        """Write an object; the same key again replaces it. Waits while the store is away."""

    @property
    def available(self) -> bool:
        """False while the store is away and writes wait."""
