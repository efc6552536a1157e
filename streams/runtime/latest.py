"""The shell of a fold that shows each of its items as one row, its latest state: what the runtime asks, over a pure core."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

from streams.runtime.fold import Materialisation, Position
from streams.runtime.unwritten import Row, Unwritten
from topics.records import Batch, Flush

#: Of a total that counts no outcomes.
_UNITS = ("_ms", "_bytes")

ChangelogRecord = tuple[bytes, bytes | None]


class LatestState(Protocol):
    """What the shell wants of a state. `seat` is the term of this process, `materialised` the version of the rows that the
    table is known to hold."""

    clock_ms: int
    seat: int
    materialised: int
    totals: Counter[str]


class Sealed(Protocol):
    """What a flush leaves to be shown once it has committed: rows by id, with their `version`, the clock and totals."""

    @property
    def rows(self) -> dict[str, Row]: ...

    @property
    def clock_ms(self) -> int: ...

    @property
    def totals(self) -> Counter[str]: ...


class Kept(Protocol):
    """What a changelog holds."""

    def take(self, records: Sequence[ChangelogRecord]) -> None:
        """Apply its records in log order."""


S = TypeVar("S", bound=LatestState)
K = TypeVar("K", bound=Kept)


@dataclass(frozen=True)
class Core(Generic[S, K]):
    """The pure functions of a fold. `seal` is given the next offset and the rows' version, and leaves a `Sealed` as the
    flush's token; `unmaterialised` are rows that the table may lack after a restore."""

    step: Callable[[S, Batch], object]
    seal: Callable[[S, int, int], Flush]
    keeping: Callable[[], K]
    restored: Callable[[S, K, int, int], None]
    unmaterialised: Callable[[S], dict[str, Row]]
    table: str
    rows: Callable[[dict[str, Row]], Any]


class LatestFold(Generic[S, K]):
    """Implements `streams.runtime.fold.Fold` but for `idle`, `open_rows` and `figures`."""

    def __init__(self, state: S, core: Core[S, K]) -> None:
        self.state = state
        self.applied = 0
        self._core = core
        self._kept = core.keeping()
        self._position = Position(0, 0)
        self._clock_ms = 0
        self._totals: Counter[str] = Counter()
        self._rows = Unwritten()

    def take_seat(self, term: int) -> None:
        """This process owns the partition, in so many's term: once its own word of it is folded, effects begin."""
        self.state.seat = term

    def restore(self, records: Sequence[ChangelogRecord]) -> None:
        """See `Fold`."""
        self._kept.take(records)

    def restored(self, position: Position) -> None:
        """See `Fold`."""
        self._core.restored(self.state, self._kept, position.epoch, position.offset)
        self._kept = self._core.keeping()
        self._rows = Unwritten(self._core.unmaterialised(self.state))
        self._position, self.applied = position, position.offset
        self._clock_ms, self._totals = self.state.clock_ms, Counter(self.state.totals)

    def step(self, batch: Batch) -> None:
        """See `Fold`."""
        self._core.step(self.state, batch)
        self.applied = batch.end

    def seal(self, position: Position) -> Flush:
        """See `Fold`."""
        flush = self._core.seal(self.state, position.offset, position.version)
        flush.token = (position, flush.token)
        return flush

    def committed(self, flush: Flush) -> None:
        """See `Fold`."""
        sealed: Sealed
        self._position, sealed = flush.token
        self._rows.add(sealed.rows)
        self._clock_ms, self._totals = sealed.clock_ms, sealed.totals

    def undone(self) -> Sequence[Any]:
        """See `Fold`: none. What an earlier owner left is asked for again once the log has been read so far."""
        return ()

    def materialise(self) -> Materialisation | None:
        """See `Fold`."""
        if not self._rows.rows:
            self.state.materialised = max(self.state.materialised, self._position.version)
            return None
        rows = {self._core.table: self._core.rows(self._rows.rows)}
        return Materialisation(self._position, rows, self._rows.newest)

    def materialised(self, done: Materialisation) -> None:
        """See `Fold`."""
        self.state.materialised = max(self.state.materialised, done.position.version)
        self._rows.forget(done.token)

    @property
    def unwritten_bytes(self) -> int:
        """See `Fold`."""
        return self._rows.nbytes

    def outcomes(self) -> Mapping[str, float]:
        """The committed totals as figures, times and sizes among them by their own names, and the clock."""
        sums = {name if name.endswith(_UNITS) else f"outcome_{name}": sum_ for name, sum_ in self._totals.items()}
        return {**{name: float(sum_) for name, sum_ in sums.items()}, "append_ms": float(self._clock_ms)}
