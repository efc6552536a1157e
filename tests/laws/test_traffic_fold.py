"""The traffic fold against its guarantees: splits, flushes, crashes and compaction change nothing that anyone can see."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from streams.sketches import tdigest, uniq
from streams.traffic import core, delta, rollup
from streams.traffic.core import TrafficRules
from tests.traffic import DAY_MS, HOUR_MS, Process, Record, World, content, event
from topics.rerouting import REROUTED

LAW = settings(
    max_examples=100,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)


@pytest.fixture(autouse=True, scope="module")
def _small_limits() -> Iterator[None]:
    """Snapshots, chunks, cut deltas, id blocks, digest tails and thinned sets are all met within a few records."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rollup, "SNAPSHOT_AT_BYTES", 300)
        patch.setattr(rollup, "_CHUNK_KEYS", 2)
        patch.setattr(delta, "RECORD_BYTES", 300)
        patch.setattr(rollup, "RECORD_BYTES", 300)
        patch.setattr(core, "_BLOCK_BYTES", 32)
        patch.setattr(tdigest, "TAIL", 4)
        patch.setattr(uniq, "CAP", 4)
        yield


# -- logs --------------------------------------------------------------------------------------------------------

_STEPS_MS = [0, 0, 0, 1, 1000, -5000, HOUR_MS // 3, HOUR_MS, 3 * HOUR_MS]
_GAPS = [1, 1, 1, 2, 5]
_RUBBISH = [
    None,
    b"",
    b"{",
    b"[]",
    b"null",
    b"\xff\xfe",
    b"[" * 2000,
    event(status="200"),
    event(client_ip="999.1.1.1"),
]
_HEADERS = [(), (), (("producer", b"edge"),), ((REROUTED, b"1/7"),), (("x", None), ("", b"\xff"))]
_AGES_MS = [0, 0, 0, 60_000, HOUR_MS // 2, HOUR_MS, 2 * HOUR_MS, 3 * HOUR_MS, -HOUR_MS // 2, -HOUR_MS, -2 * HOUR_MS]
# Half of what is rolled gives the first choice, so that some keys have many events.
_PATHS = ["/", "/a", "/b", "/v1/docs:batchGet", "a|||b", "\x00", "{other}", "{id}", "/users/1", "/users/2", "/ünï/✓"]
_METHODS = ["GET", "POST"]
_STATUSES = [200, 204, 404, 500]
_TIMES_MS = [12.5, None, 0, -0.0, 0.1, 12.4, 99, 86_400_000]
_SIZES = [None, 0, 1, 1 << 50]
_LABELS = [None, {}, {"zone": "eu"}, {"zone": "", "other": "|"}]


def _pick(byte: int, choices: Sequence[Any]) -> Any:
    return choices[byte % len(choices)]


def _mostly(byte: int, choices: Sequence[Any]) -> Any:
    return choices[0] if byte < 128 else _pick(byte, choices)


def _event(dice: bytes, append_ms: int) -> bytes:
    return event(
        f"id-{dice[0] % 40}",
        append_ms - _pick(dice[1], _AGES_MS),
        path=_mostly(dice[2], _PATHS),
        method=_mostly(dice[3], _METHODS),
        status=_mostly(dice[4], _STATUSES),
        client_ip=f"192.0.2.{dice[5] % 12}",
        response_time_ms=_pick(dice[6], _TIMES_MS),
        bytes=_mostly(dice[7], _SIZES),
        dimensions=_mostly(dice[8], _LABELS),
    )


def _log(rolled: list[bytes]) -> list[Record]:
    """A partition's records: offsets with gaps, a broker clock that may step back, one value in eight no event."""
    records, offset, append_ms = [], 0, DAY_MS
    for dice in rolled:
        append_ms += _pick(dice[0], _STEPS_MS)
        value = _pick(dice[2], _RUBBISH) if dice[1] >= 224 else _event(dice[4:], append_ms)
        records.append(Record(offset, append_ms, value, b"k", _pick(dice[3], _HEADERS)))
        offset += _pick(dice[2], _GAPS)
    return records


_DICE = 13
# One draw a log: a draw a field would take most of the suite's time, and make most logs short.
logs = (
    st.integers(1, 60)
    .flatmap(lambda count: st.binary(min_size=_DICE * count, max_size=_DICE * count))
    .map(lambda rolled: _log([rolled[at : at + _DICE] for at in range(0, len(rolled), _DICE)]))
)

rules = st.builds(
    TrafficRules,
    partition=st.just(0),
    partitions=st.sampled_from([1, 1, 2]),
    lateness_h=st.just(2),
    dedup_h=st.sampled_from([2, 3]),
    early_h=st.just(1),
    templates=st.booleans(),
    paths_max=st.sampled_from([2, 3, 100]),
    dimensions=st.sampled_from([(), ("zone",)]),
)


def _end(log: Sequence[Record]) -> int:
    return log[-1].offset + 1


def _cuts(log: Sequence[Record]) -> st.SearchStrategy[list[int]]:
    """Offsets in order, the log's end last."""
    inner = st.sets(st.integers(0, _end(log)), max_size=12)
    return inner.map(lambda cuts: [*sorted(cuts - {_end(log)}), _end(log)])


# -- splits ------------------------------------------------------------------------------------------------------


@LAW
@given(st.data(), rules, logs)
def test_how_batches_are_split_changes_no_byte(data: st.DataObject, rules: TrafficRules, log: list[Record]) -> None:
    flush_at = set(data.draw(_cuts(log), "flushes"))
    plain, split = World(), World()
    wholes = [_flushed(Process(rules, plain), log, sorted(flush_at), flush_at)]
    cuts = sorted(flush_at | set(data.draw(_cuts(log), "cuts")))
    wholes.append(_flushed(Process(rules, split), log, cuts, flush_at))
    assert wholes[0] == wholes[1]
    assert plain == split


def _flushed(process: Process, log: list[Record], cuts: list[int], flush_at: set[int]) -> Any:
    for cut in cuts:
        process.read(log, cut)
        if cut in flush_at:
            process.commit(process.seal())
            process.materialise()
    return content(process.fold)


@LAW
@given(st.data(), rules, logs)
def test_where_flushes_lie_changes_no_answer(data: st.DataObject, rules: TrafficRules, log: list[Record]) -> None:
    plain, split = World(), World()
    once = _flushed(Process(rules, plain), log, [_end(log)], {_end(log)})
    process = Process(rules, split)
    for cut in data.draw(_cuts(log), "flushes"):
        process.read(log, cut)
        process.commit(process.seal())
        process.materialise(data.draw(st.sampled_from([99, 0, 1])))
    process.finish()
    assert content(process.fold) == once
    assert split.answers() == plain.answers()
    assert (split.events, split.emits, split.dead) == (plain.events, plain.emits, plain.dead)


@LAW
@given(rules, logs)
def test_every_record_is_accounted_for_once(rules: TrafficRules, log: list[Record]) -> None:
    world = World()
    process = Process(rules, world)
    process.read(log, _end(log))
    process.finish()
    totals = process.fold.state.totals
    assert sum(totals[name] for name in ("accepted", "duplicate", "rerouted", "dead")) == len(log)
    assert totals["accepted"] == len(world.events) == sum(row["requests"] for row in world.rollups.values())
    assert totals["rerouted"] == len(world.emits)
    assert totals["dead"] == len(world.dead)
    by_offset = {record.offset: record for record in log}
    for letter in world.dead:
        record = by_offset[letter.offset]
        assert (letter.value, letter.key, letter.headers) == (record.value, record.key, record.headers)


# -- crashes -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Life:
    """What one process does before it dies: flushes at these offsets; the last is sealed, and committed or not."""

    cuts: list[int]
    last_commits: bool
    materialised: int


def _lives(log: Sequence[Record]) -> st.SearchStrategy[list[_Life]]:
    cuts = st.sets(st.integers(0, _end(log)), min_size=1, max_size=4).map(sorted)
    return st.lists(st.builds(_Life, cuts, st.booleans(), st.sampled_from([99, 0, 1])), max_size=4)


@LAW
@given(st.data(), rules, logs)
def test_crashes_and_compaction_change_no_answer(data: st.DataObject, rules: TrafficRules, log: list[Record]) -> None:
    plain, crashed = World(), World()
    once = _flushed(Process(rules, plain), log, [_end(log)], {_end(log)})
    for life in data.draw(_lives(log), "lives"):
        _live(Process(rules, crashed), log, life)
        upto = data.draw(st.integers(0, len(crashed.changelog)), "compacted up to")
        crashed.compact(upto, data.draw(st.integers(0, upto), "tombstones forgotten up to"))
    last = Process(rules, crashed)
    last.read(log, _end(log))
    last.finish()
    assert content(last.fold) == once
    assert crashed.answers() == plain.answers()
    assert (crashed.events, crashed.emits, crashed.dead) == (plain.events, plain.emits, plain.dead)


def _live(process: Process, log: list[Record], life: _Life) -> None:
    cuts = [cut for cut in life.cuts if cut > process.position]
    for cut in cuts:
        process.read(log, cut)
        flush = process.seal()
        if cut != cuts[-1] or life.last_commits:
            process.commit(flush)
            process.materialise(life.materialised)


@LAW
@given(st.data(), rules, logs)
def test_a_restore_is_the_state_that_was_committed(data: st.DataObject, rules: TrafficRules, log: list[Record]) -> None:
    world = World()
    process = Process(rules, world)
    for cut in data.draw(_cuts(log), "flushes"):
        process.read(log, cut)
        process.commit(process.seal())
        process.materialise(data.draw(st.sampled_from([99, 0, 1])))
        committed = content(process.fold)
        assert content(Process(rules, world).fold) == committed
        # The cleaner may have come to any record, also between those of one flush.
        cleaned = World(list(world.changelog), cursor=world.cursor)
        upto = len(world.changelog) - data.draw(st.integers(0, min(20, len(world.changelog))), "left raw")
        cleaned.compact(upto, data.draw(st.integers(0, upto), "tombstones forgotten up to"))
        assert content(Process(rules, cleaned).fold) == committed


@LAW
@given(st.data(), rules, logs)
def test_what_is_over_leaves_the_changelog(data: st.DataObject, rules: TrafficRules, log: list[Record]) -> None:
    world = World()
    for cuts in (data.draw(_cuts(log), "flushes"), []):
        process = Process(rules, world)
        for cut in cuts:
            process.read(log, cut)
            process.finish()
    later_ms = max(record.append_ms for record in log) + 200 * HOUR_MS
    for step in range(2):
        process.read([Record(_end(log) + step, later_ms, event("id-1", later_ms))], _end(log) + step + 1)
        process.finish()
    world.compact(len(world.changelog), len(world.changelog))
    hours = {int.from_bytes(key[1:5], "big") for key, _ in world.changelog if key != core.STATE_KEY}
    assert hours <= {later_ms // HOUR_MS, later_ms // HOUR_MS + rules.dedup_h}
