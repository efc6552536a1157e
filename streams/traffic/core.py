"""The traffic fold of one partition: `step` judges and remembers every record, `seal` encodes what they add up to.

Pure: a record's fate follows from the log before it and the rules. In order: decode and validate; send on what lies in
the wrong partition for its id; refuse what is too early or too late by the broker's clock; drop ids seen before; keep
the rest. The clock is the highest append time so far, so a replay decides as the first run did.
"""

from __future__ import annotations

import struct
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import pairwise

import msgspec
import numpy as np
import numpy.typing as npt

from streams.traffic.columns import I64, Decoded, Dictionaries, Rows, decode_batch, event_table
from streams.traffic.dedup import DedupIndex
from streams.traffic.delta import HOUR_MS, Delta, PathCap, deltas
from streams.traffic.lateness import Lateness
from streams.traffic.rollup import DELTA, SNAPSHOT, ChangelogRecord, Rollups
from streams.traffic.templates import template
from topics.malformed import Malformed
from topics.native import digests_of, partitions_of
from topics.records import Batch, DeadLetter, Emit, Flush, Record, Unreadable
from topics.rerouting import sent_on
from topics.specs import TRAFFIC_EVENTS

IDS = b"d"
STATE_KEY = b"m"
_IDS_KEY = struct.Struct(">ciI")
_BLOCK_BYTES = 16 * 50_000

#: Longer paths are rare, and 65,536 of the longest would fill the memory.
_REMEMBERED_PATH_CHARS = 256
_remembered_template = lru_cache(maxsize=65_536)(template)

Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True, kw_only=True)
class TrafficRules:
    """What decides a record's fate. Hours are of the partition's clock; `dimensions` are rolled up by, at most 3.

    `max_bytes` is what the source topic takes of one record beside its headers.
    """

    partition: int
    partitions: int
    lateness_h: int = 72
    dedup_h: int = 72
    early_h: int = 24
    templates: bool = False
    paths_max: int = 10_000
    dimensions: tuple[str, ...] = ()
    max_bytes: int = 1 << 20
    topic: str = TRAFFIC_EVENTS


class _Saved(msgspec.Struct):
    """The fold's own record in the changelog: its clock, what ClickHouse holds, totals and numbers of id blocks.

    `newest_ms` is the latest time that any event accepted so far may bear.
    """

    clock_ms: int
    newest_ms: int
    lateness: Lateness
    materialised: int
    totals: dict[str, int]
    blocks: dict[int, int]


@dataclass
class TrafficState:
    """State of one partition. `clock_ms`, `ids` and `totals` are of all that was folded; `rollups` of what is committed."""

    rules: TrafficRules
    ids: DedupIndex
    rollups: Rollups
    cap: PathCap
    lateness: Lateness
    clock_ms: int = 0
    newest_ms: int = 0
    totals: Counter[str] = field(default_factory=Counter)
    blocks: dict[int, int] = field(default_factory=dict)
    expired: list[int] = field(default_factory=list)
    names: Dictionaries = field(default_factory=Dictionaries)
    rows: list[Rows] = field(default_factory=list)
    row_count: int = 0
    other_bytes: int = 0
    emits: list[Emit] = field(default_factory=list)
    dead: list[DeadLetter] = field(default_factory=list)
    materialised: int = 0

    @property
    def open_bytes(self) -> int:
        """What is kept until `seal`: texts of rows, records to send on, dead letters."""
        return self.names.nbytes + sum(part.ids.nbytes for part in self.rows) + self.other_bytes


@dataclass(frozen=True)
class Sealed:
    """What `committed` needs of a flush: its deltas, clock and totals."""

    deltas: list[Delta]
    clock_ms: int
    totals: Counter[str]
    version: int


def new_state(rules: TrafficRules, ids: DedupIndex) -> TrafficState:
    """An empty fold."""
    lateness = Lateness(rules.lateness_h, rules.lateness_h)
    return TrafficState(rules, ids, Rollups(rules.topic, rules.partition), PathCap(rules.paths_max), lateness)


# -- step --------------------------------------------------------------------------------------------------------


def step(state: TrafficState, batch: Batch) -> TrafficState:
    """Fold one batch; total. What it adds is kept open in the state until `seal`."""
    for piece in batch.unreadable:
        _bury_unreadable(state, batch, piece)
    if not len(batch):
        return state
    clock = np.maximum(np.maximum.accumulate(batch.append_ms), state.clock_ms)
    decoded = decode_batch(batch.values)
    for row, malformed in decoded.malformed:
        _bury(state, batch, row, malformed.reason, malformed.error)
    if len(decoded):
        _judge(state, batch, decoded, clock)
    state.clock_ms = int(clock[-1])
    state.newest_ms = max(state.newest_ms, state.clock_ms + state.rules.early_h * HOUR_MS)
    return state


def _judge(state: TrafficState, batch: Batch, decoded: Decoded, clock: I64) -> None:
    rules, rows, timestamp = state.rules, decoded.rows, decoded.timestamp_ms
    home = partitions_of(decoded.ids, rules.partitions)
    astray = home != rules.partition
    early = ~astray & (timestamp > batch.append_ms[rows] + rules.early_h * HOUR_MS)
    late = ~astray & (timestamp < state.lateness.oldest_ms(clock[rows]))
    if astray.any():
        _send_on(state, batch, decoded, astray, home)
    for name, refused in (("early", early), ("late", late)):
        _refuse(state, batch, decoded, refused, name, timestamp, clock)
    kept = ~(astray | early | late)
    new = _unseen(state, decoded, kept, timestamp, clock[rows])
    state.totals["duplicate"] += int(kept.sum()) - int(new.sum())
    _accept(state, batch, decoded, new)


def _unseen(state: TrafficState, decoded: Decoded, kept: Bools, timestamp: I64, clock: I64) -> Bools:
    """Which of the kept events bear an id for the first time. An id stays until an event bearing it would be too late.

    Ids expire where the clock passes an hour, also in mid-batch, so that how batches are split decides nothing.
    """
    new = np.zeros(len(kept), dtype=bool)
    at = np.flatnonzero(kept)
    if not len(at):
        return new
    digests = digests_of(decoded.ids.take(at))
    expiry = (np.maximum(timestamp[at], clock[at]) + state.rules.dedup_h * HOUR_MS) // HOUR_MS
    hours = clock[at] // HOUR_MS
    bounds = [0, *(np.flatnonzero(np.diff(hours)) + 1).tolist(), len(at)]
    for a, b in pairwise(bounds):
        state.expired += state.ids.expire(int(hours[a]))
        new[at[a:b]] = state.ids.add(digests[a:b], expiry[a:b])
    return new


def _accept(state: TrafficState, batch: Batch, decoded: Decoded, new: Bools) -> None:
    count = int(new.sum())
    if not count:
        return
    state.rows.append(state.names.rows(batch, decoded if count == len(new) else decoded.take(new)))
    state.row_count += count
    state.totals["accepted"] += count


def _send_on(state: TrafficState, batch: Batch, decoded: Decoded, astray: Bools, home: I64) -> None:
    sent = len(state.emits)
    at = np.flatnonzero(astray)
    rows, ids = decoded.rows[at], decoded.ids.take(at)
    # All as plain values: an array's own scalars cost a microsecond each.
    columns = (rows.tolist(), batch.offsets[rows].tolist(), batch.append_ms[rows].tolist(), home[at].tolist())
    for i, (row, offset, append_ms, to) in enumerate(zip(*columns, strict=True)):
        # By its id: the key may be another one, or missing.
        record = Record(offset, append_ms, batch.value(row), ids.bytes_of(i), batch.headers(row))
        emit = sent_on(batch.topic, batch.partition, record, to, state.rules.max_bytes)
        if isinstance(emit, Malformed):
            _bury(state, batch, row, emit.reason, emit.error)
            continue
        state.emits.append(emit)
        state.other_bytes += emit.nbytes
    state.totals["rerouted"] += len(state.emits) - sent


def _refuse(
    state: TrafficState, batch: Batch, decoded: Decoded, refused: Bools, name: str, timestamp: I64, clock: I64
) -> None:
    side = "ahead of its append time" if name == "early" else "behind the partition's clock"
    for i in np.flatnonzero(refused).tolist():
        row = int(decoded.rows[i])
        reference = int(batch.append_ms[row]) if name == "early" else int(clock[row])
        limit_ms = state.rules.early_h * HOUR_MS if name == "early" else reference - state.lateness.oldest_ms(reference)
        off_h, limit_h = abs(int(timestamp[i]) - reference) / HOUR_MS, round(limit_ms / HOUR_MS, 1)
        _bury(state, batch, row, name, f"its time is {off_h:.1f} h {side}; {limit_h:g} h are allowed")
        state.totals[name] += 1


def _bury(state: TrafficState, batch: Batch, row: int, reason: str, error: str) -> None:
    at = (batch.topic, batch.partition, int(batch.offsets[row]), int(batch.append_ms[row]))
    _bury_letter(state, DeadLetter(reason, error, *at, batch.key(row), batch.value(row), batch.headers(row)))


def _bury_unreadable(state: TrafficState, batch: Batch, piece: Unreadable) -> None:
    error = f"offsets {piece.first_offset} to {piece.next_offset - 1} cannot be decoded: {piece.error}"
    _bury_letter(state, DeadLetter.unreadable(batch, piece, error))


def _bury_letter(state: TrafficState, letter: DeadLetter) -> None:
    state.dead.append(letter)
    state.other_bytes += letter.nbytes
    state.totals["dead"] += 1


# -- flush -------------------------------------------------------------------------------------------------------


def seal(state: TrafficState, next_offset: int, version: int) -> Flush:
    """Everything folded since the last seal, encoded; the state goes on with empty hands."""
    found: list[Delta] = []
    # A step buries reason by reason; in the order of the log, the letters do not tell how batches were split.
    flush = Flush(next_offset, emits=state.emits, dead=sorted(state.dead, key=lambda letter: letter.offset))
    if state.rows:
        found = deltas(state.rows, state.names, state.rules.dimensions, _names(state), state.cap, version)
        flush.rows["traffic_events_rows"] = [event_table(state.rows, state.names, state.rules.partition)]
    flush.changelog = [*_id_blocks(state), *state.rollups.log(found), *_closings(state, found)]
    flush.token = Sealed(found, state.clock_ms, Counter(state.totals), version)
    flush.changelog.append((STATE_KEY, _saved(state)))
    state.names, state.rows, state.row_count = Dictionaries(), [], 0
    state.emits, state.dead, state.other_bytes = [], [], 0
    return flush


def _names(state: TrafficState) -> list[str]:
    """The names under which the flush's paths are counted, by code."""
    paths: list[str] = state.names.path.array().to_pylist()
    return [_template(path) for path in paths] if state.rules.templates else paths


def _template(path: str) -> str:
    return _remembered_template(path) if len(path) <= _REMEMBERED_PATH_CHARS else template(path)


def _saved(state: TrafficState) -> bytes:
    totals = dict(sorted(state.totals.items()))
    clock = (state.clock_ms, state.newest_ms, state.lateness)
    return msgspec.msgpack.encode(_Saved(*clock, state.materialised, totals, state.blocks))


def _id_blocks(state: TrafficState) -> Iterator[ChangelogRecord]:
    for hour in state.expired:
        for number in range(state.blocks.pop(hour, 0)):
            yield _IDS_KEY.pack(IDS, hour, number), None
    state.expired = []
    for hour, packed in state.ids.take_new():
        for start in range(0, len(packed), _BLOCK_BYTES):
            number = state.blocks.get(hour, 0)
            yield _IDS_KEY.pack(IDS, hour, number), packed[start : start + _BLOCK_BYTES]
            state.blocks[hour] = number + 1


def _closings(state: TrafficState, found: list[Delta]) -> Iterator[ChangelogRecord]:
    first_open = int(state.lateness.oldest_ms(state.clock_ms)) // HOUR_MS
    touched = {delta.hour for delta in found}  # their last deltas are not applied yet
    hours = [hour for hour in state.rollups.closable(first_open) if hour not in touched]
    for hour in hours:
        state.cap.forget(hour)
    yield from state.rollups.close(hours)


def committed(state: TrafficState, sealed: Sealed) -> None:
    """The flush that `seal` made has committed: its deltas are part of the state now."""
    for delta in sealed.deltas:
        state.rollups.apply(delta)


# -- restore -----------------------------------------------------------------------------------------------------


def restore(state: TrafficState, records: Sequence[ChangelogRecord]) -> None:
    """Apply changelog records in log order."""
    for key, value in records:
        kind = key[:1]
        if kind == IDS:
            _restore_ids(state, key, value)
        elif kind in (DELTA, SNAPSHOT):
            state.rollups.restore(key, value)
        elif kind == STATE_KEY and value is not None:
            saved = msgspec.msgpack.decode(value, type=_Saved)
            state.clock_ms, state.newest_ms, state.lateness = saved.clock_ms, saved.newest_ms, saved.lateness
            state.materialised = saved.materialised
            state.totals, state.blocks = Counter(saved.totals), saved.blocks


def _restore_ids(state: TrafficState, key: bytes, value: bytes | None) -> None:
    _, hour, _ = _IDS_KEY.unpack(key)
    if value is not None:
        state.ids.load(hour, value)
    else:
        # An id that came again after its hour stands in a later block, which must not find it still held.
        state.ids.expire(hour + 1)


def restored(state: TrafficState) -> None:
    """End of a restore: forget what the clock has passed, and see what ClickHouse may lack."""
    state.lateness = state.lateness.under(state.rules.lateness_h, state.clock_ms, state.newest_ms)
    state.expired += state.ids.expire(state.clock_ms // HOUR_MS)
    state.expired += [hour for hour in state.blocks if hour < state.clock_ms // HOUR_MS and hour not in state.expired]
    state.rollups.settle(state.materialised)
    for hour, rollup in state.rollups.hours.items():
        for path, *_ in rollup.keys:
            state.cap.note(hour, path)
