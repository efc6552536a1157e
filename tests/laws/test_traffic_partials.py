"""Partials merge in any order and grouping: sums and visitors exactly, digests within their rank error."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from hypothesis import given, settings
from hypothesis import strategies as st

from streams.sketches.cityhash import uniq_hash
from streams.sketches.uniq import UniqSets
from streams.traffic.core import TrafficRules
from streams.traffic.delta import BYTES, BYTES_MOST, Delta, decode_delta
from streams.traffic.rollup import DELTA, HourRollup
from tests.traffic import DAY_MS, HOUR_MS, Process, Record, World, event
from topics.partitioning import partition_of

PARTITIONS = 4
LEVELS = (0.5, 0.95, 0.99)
HOUR = DAY_MS // HOUR_MS


@dataclass(frozen=True)
class Partial:
    """One partition's part of one key, or several merged."""

    sums: tuple[int, ...]
    max_us: int
    visitors: bytes
    centroids: tuple[tuple[float, float], ...]

    def merged(self, other: Partial) -> Partial:
        """Both together, as ClickHouse's -Merge functions put them: centroids gathered, to be compressed by the reader."""
        visitors = UniqSets()
        visitors.load(self.visitors)
        visitors.load(other.visitors)
        return Partial(
            tuple(a + b for a, b in zip(self.sums, other.sums, strict=True)),
            max(self.max_us, other.max_us),
            visitors.dump(),
            tuple(sorted(self.centroids + other.centroids)),
        )


def _partials(values: npt.NDArray[np.float64], addresses: int) -> list[Partial]:
    """One fold a partition over events spread by their ids; all of one key."""
    parts: list[list[Record]] = [[] for _ in range(PARTITIONS)]
    for i, value in enumerate(values.tolist()):
        part = parts[partition_of(b"e%d" % i, PARTITIONS)]
        ip = f"10.0.{i % addresses // 250}.{i % addresses % 250}"
        part.append(Record(len(part), DAY_MS, event(f"e{i}", client_ip=ip, response_time_ms=value, bytes=i)))
    return [_partial(partition, records) for partition, records in enumerate(parts) if records]


def _partial(partition: int, records: list[Record]) -> Partial:
    process = Process(TrafficRules(partition=partition, partitions=PARTITIONS), World())
    process.read(records, len(records))
    process.finish()
    hour = process.fold.state.rollups.hours[HOUR]
    (state,) = hour.times.states(np.array([0]))
    sums = hour.sums[:, 0].tolist()
    pairs = np.frombuffer(state, "<f4", -1, 1 if state[0] < 0x80 else 2).reshape(-1, 2).tolist()
    return Partial(tuple(sums[:5]), sums[5], hour.visitors.dump(), tuple((m, w) for m, w in pairs))


def _rank_error(partial: Partial, sample: npt.NDArray[np.float64], level: float) -> float:
    """How far the rank of the digest's quantile is from the one that was asked for, as a share of all."""
    means, weights = np.array(partial.centroids).T
    middles = np.cumsum(weights) - weights / 2
    found = np.interp(level * weights.sum(), middles, means)
    below, upto = np.searchsorted(sample, found, "left"), np.searchsorted(sample, found, "right")
    wanted = level * len(sample)
    return float(max(0.0, below - wanted, wanted - upto)) / len(sample)


@settings(max_examples=15, deadline=None)
@given(st.data(), st.integers(0, 2**32), st.sampled_from([5, 400, 3_000]), st.sampled_from([1, 30, 2_000]))
def test_partials_of_partitions_merge_in_any_order(data: st.DataObject, seed: int, count: int, addresses: int) -> None:
    values = np.random.default_rng(seed).lognormal(3, 1, count).astype(np.float32).astype(np.float64)
    left = _partials(values, addresses)
    while len(left) > 1:
        a, b = data.draw(st.permutations(range(len(left))))[:2]
        merged = left[a].merged(left[b])
        left = [merged, *(partial for i, partial in enumerate(left) if i not in (a, b))]
    (whole,) = left
    micros = np.rint(values * 1000).astype(np.int64)
    assert whole.sums == (count, 0, count * (count - 1) // 2, int(micros.sum()), count)
    assert whole.max_us == micros.max()
    assert _visitors(whole) == _hashes(min(count, addresses))
    for level in LEVELS:
        assert _rank_error(whole, np.sort(values), level) <= max(0.01, 1.0 / count)


def _visitors(partial: Partial) -> set[int]:
    sets = UniqSets()
    sets.load(partial.visitors)
    (state,) = sets.states(np.array([0]))
    count = int(sets.counts(np.array([0]))[0])
    return set(np.frombuffer(state[-4 * count :], "<u4").tolist())


def _hashes(addresses: int) -> set[int]:
    texts = [f"10.0.{i // 250}.{i % 250}".encode() for i in range(addresses)]
    ends = np.cumsum([0, *map(len, texts)]).astype(np.int32)
    return set(uniq_hash(np.frombuffer(b"".join(texts), dtype=np.uint8), ends).tolist())


@settings(max_examples=25, deadline=None)
@given(st.data(), st.integers(0, 2**32), st.integers(1, 2_000))
def test_deltas_add_up_in_any_order(data: st.DataObject, seed: int, count: int) -> None:
    rng = np.random.default_rng(seed)
    values = rng.lognormal(3, 1, count)
    cuts = sorted({*rng.integers(0, count, 6).tolist(), count})
    deltas = _deltas(values, cuts)
    in_order, shuffled = HourRollup(), HourRollup()
    for delta in deltas:
        in_order.apply(delta)
    for delta in data.draw(st.permutations(deltas)):
        shuffled.apply(delta)
    for key, row in in_order.rows.items():
        other = shuffled.rows[key]
        assert in_order.sums[:, row].tolist() == shuffled.sums[:, other].tolist()
        assert in_order.visitors.states(np.array([row])) == shuffled.visitors.states(np.array([other]))
    sample = np.sort(values[::2].astype(np.float32).astype(np.float64))
    for level in LEVELS:
        assert _rank_error(_of(shuffled, "/0"), sample, level) <= max(0.01, 1.0 / len(sample))


def _deltas(values: npt.NDArray[np.float64], cuts: list[int]) -> list[Delta]:
    records = [
        Record(i, DAY_MS, event(f"e{i}", path=f"/{i % 2}", client_ip=f"10.0.0.{i % 99}", response_time_ms=value))
        for i, value in enumerate(values.tolist())
    ]
    process = Process(TrafficRules(partition=0, partitions=1), World())
    found: list[Delta] = []
    for cut in cuts:
        process.read(records, cut)
        flush = process.seal()
        found += [decode_delta(HOUR, value) for key, value in flush.changelog if key[:1] == DELTA and value]
        process.commit(flush)
    return found


def _of(hour: HourRollup, path: str) -> Partial:
    row = np.array([hour.rows[path, "GET", 2, ()]])
    (state,) = hour.times.states(row)
    pairs = np.frombuffer(state, "<f4", -1, 1 if state[0] < 0x80 else 2).reshape(-1, 2).tolist()
    return Partial((), 0, b"", tuple((m, w) for m, w in pairs))


@given(st.lists(st.integers(0, 2**50) | st.integers(2**60, 2**63 - 1), max_size=12), st.data())
def test_bytes_stay_at_their_limit_in_any_order(sizes: list[int], data: st.DataObject) -> None:
    none, hour = np.zeros(1, dtype=np.int64), HourRollup()
    for size in data.draw(st.permutations(sizes)):
        sums = np.array([[1], [0], [size], [0], [0], [0]])
        hour.apply(
            Delta(HOUR, 1, [("/", "GET", 2, ())], sums, none, none[:0].astype("<u4"), none, none[:0].astype("<f4"))
        )
    assert hour.sums[BYTES, 0] == min(sum(sizes), BYTES_MOST)
