"""States built here are ClickHouse's own: the engine reads them, and merges them with those that it built."""

from __future__ import annotations

import struct
import uuid
from collections.abc import Callable, Iterator, Sequence

import clickhouse_connect
import numpy as np
import numpy.typing as npt
import pytest
from clickhouse_connect.driver.client import Client

from compose.local.stack import LocalStack
from streams.sketches.cityhash import uniq_hash
from streams.sketches.tdigest import TDigests
from streams.sketches.uniq import UniqSets

pytestmark = pytest.mark.stack

F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]

LEVELS = (0.5, 0.95, 0.99)
QUANTILES = "quantilesTDigest(0.5, 0.95, 0.99)"
PARTITIONS = 4


@pytest.fixture(scope="module")
def client(stack: LocalStack) -> Iterator[Client]:
    with clickhouse_connect.get_client(host="127.0.0.1", port=stack.clickhouse.port) as client:
        yield client


@pytest.fixture
def stored(client: Client) -> Iterator[Callable[[str, Sequence[tuple[int, bytes]]], str]]:
    """Put numbered states of an aggregate function into a table; gives its name."""
    names: list[str] = []

    def store(function: str, states: Sequence[tuple[int, bytes]]) -> str:
        names.append(f"states_{uuid.uuid4().hex}")
        client.command(f"CREATE TABLE {names[-1]} (g UInt32, s AggregateFunction({function})) ENGINE = Log")
        rows = b"".join(struct.pack("<I", number) + state for number, state in states)
        client.raw_insert(names[-1], insert_block=rows, fmt="RowBinary")
        return names[-1]

    yield store
    for name in names:
        client.command(f"DROP TABLE {name}")


def _address(i: int) -> str:
    return f"10.{i >> 16 & 255}.{i >> 8 & 255}.{i & 255}"


ADDRESS_SQL = (
    "concat('10.', toString(bitAnd(bitShiftRight(number, 16), 255)), '.', "
    "toString(bitAnd(bitShiftRight(number, 8), 255)), '.', toString(bitAnd(number, 255)))"
)


def _uniq_states(strings: Sequence[str], split: int = 1) -> list[bytes]:
    encoded = [string.encode() for string in strings]
    hashes = uniq_hash(np.frombuffer(b"".join(encoded), np.uint8), np.cumsum([0, *map(len, encoded)]))
    sets = UniqSets()
    sets.add((np.arange(len(hashes)) % split).astype(np.uint32), hashes)
    return sets.states(np.arange(split))


def _members(state: bytes) -> tuple[int, list[int]]:
    """Degree and hashes of a uniq state; the engine writes them in the order of its table."""
    at = 1
    while state[at] & 0x80:
        at += 1
    return state[0], sorted(np.frombuffer(state, "<u4", -1, at + 1).tolist())


# Of 65,537 of these addresses two share a hash: exactly the cap; one more, and the set is thinned.
@pytest.mark.parametrize("size", [0, 1, 15, 16, 17, 1_000, 65_537, 65_538, 200_000, 1_000_000])
def test_a_uniq_state_holds_what_the_engines_holds(client: Client, size: int) -> None:
    rows = client.query(f"SELECT hex(uniqState({ADDRESS_SQL})) FROM numbers({size})").result_rows
    (ours,) = _uniq_states([_address(i) for i in range(size)])
    assert _members(bytes.fromhex(rows[0][0])) == _members(ours)


@pytest.mark.parametrize("strings", [["", "a", "é", "10.0.0.1"], ["x" * n for n in range(300)]])
def test_strings_of_any_length_meet_the_engines_own(
    client: Client, stored: Callable[..., str], strings: list[str]
) -> None:
    table = stored("uniq, String", [(0, _uniq_states(strings)[0])])
    merged = client.query(
        f"SELECT uniqMerge(s) FROM (SELECT s FROM {table} UNION ALL "
        "SELECT uniqState(v) FROM (SELECT arrayJoin({strings:Array(String)}) AS v))",
        parameters={"strings": strings},
    )
    assert merged.result_rows == [(len(strings),)]


@pytest.mark.parametrize("size, first", [(1_000, 0), (1_000, 500), (1_000, 1_000), (300_000, 0), (300_000, 150_000)])
def test_merging_with_the_engines_state_counts_nothing_twice(
    client: Client, stored: Callable[..., str], size: int, first: int
) -> None:
    states = _uniq_states([_address(i) for i in range(size)], PARTITIONS)
    table = stored("uniq, String", [(0, state) for state in states])
    merged = client.query(
        f"SELECT uniqMerge(s) FROM (SELECT s FROM {table} UNION ALL "
        f"SELECT uniqState({ADDRESS_SQL}) FROM numbers({first}, {size}))"
    ).result_rows[0][0]
    assert merged == pytest.approx(size + first, rel=0 if size + first <= 1_000 else 0.03)


def test_unique_counts_are_exact_to_1000_and_close_beyond(client: Client, stored: Callable[..., str]) -> None:
    sizes = [1, 10, 500, 999, 1_000, 10_000, 65_536, 70_000, 250_000, 900_000]
    states = [
        (number, state)
        for number, size in enumerate(sizes)
        for state in _uniq_states([_address(i) for i in range(size)], PARTITIONS)
    ]
    table = stored("uniq, String", states)
    rows = client.query(f"SELECT uniqMerge(s) FROM {table} GROUP BY g ORDER BY g").result_rows
    for size, (count,) in zip(sizes, rows, strict=True):
        assert count == pytest.approx(size, rel=0 if size <= 1_000 else 0.03)


Values = Callable[[np.random.Generator, int], F64]
DISTRIBUTIONS: dict[str, Values] = {
    "lognormal": lambda random, n: random.lognormal(3, 1, n),
    "wide lognormal": lambda random, n: random.lognormal(3, 2, n),
    "pareto": lambda random, n: random.pareto(1.2, n) + 1,
    "exponential": lambda random, n: random.exponential(50, n),
    "two humps": lambda random, n: np.where(random.random(n) < 0.97, random.lognormal(2, 0.3, n), 500 + n * 0.001),
    "ascending": lambda random, n: np.sort(random.lognormal(3, 1, n)),
    "descending": lambda random, n: np.sort(random.lognormal(3, 1, n))[::-1],
    "whole milliseconds": lambda random, n: np.floor(random.lognormal(3, 1, n)),
    "constant": lambda random, n: np.full(n, 7.5),
}


def _tdigest_states(values: F32, split: int = PARTITIONS) -> list[bytes]:
    digests = TDigests()
    for first in range(0, len(values), 10_007):
        batch = values[first : first + 10_007]
        digests.add(((first + np.arange(len(batch))) % split).astype(np.uint32), batch)
    return digests.states(np.arange(split))


def _rank_error(values: F32, level: float, read: float) -> float:
    """How far the level is from the ranks that the value has in the ascending values."""
    # A mean of equal float32 values may be off in the last place.
    near, far = np.float32(read) * np.array([1 - 1e-6, 1 + 1e-6])
    below = np.searchsorted(values, near) / len(values)
    up_to = np.searchsorted(values, far, "right") / len(values)
    return float(max(below - level, level - up_to, 0))


@pytest.mark.parametrize("name", DISTRIBUTIONS)
def test_quantiles_of_merged_partitions_are_close(client: Client, stored: Callable[..., str], name: str) -> None:
    sizes = [1, 2, 7, 100, 600, 1_000, 3_000, 5_000, 20_000, 50_000, 50_000, 50_000, 400_000]
    random = np.random.default_rng(len(name))
    columns = [DISTRIBUTIONS[name](random, size).astype(np.float32) for size in sizes]
    states = [(number, state) for number, values in enumerate(columns) for state in _tdigest_states(values)]
    table = stored(f"{QUANTILES}, Float32", states)
    rows = client.query(f"SELECT quantilesTDigestMerge(0.5, 0.95, 0.99)(s) FROM {table} GROUP BY g ORDER BY g")
    for values, (read,) in zip(columns, rows.result_rows, strict=True):
        ascending = np.sort(values)
        for level, quantile in zip(LEVELS, read, strict=True):
            assert _rank_error(ascending, level, quantile) <= max(0.01, 1 / len(values))
            if len(values) >= 50_000:
                # Values that come in steps are read between two of them, by the engine's own digest too.
                step = 1 if name == "whole milliseconds" else 0
                assert quantile == pytest.approx(np.quantile(ascending, level), rel=0.01, abs=step)


def test_digests_merge_with_the_engines_own(client: Client, stored: Callable[..., str]) -> None:
    values = np.random.default_rng(11).lognormal(3, 1, 60_000).astype(np.float32)
    table = stored(f"{QUANTILES}, Float32", [(0, state) for state in _tdigest_states(values[:30_000])])
    raw = f"raw_{uuid.uuid4().hex}"
    client.command(f"CREATE TABLE {raw} (v Float32) ENGINE = Log")
    client.raw_insert(raw, insert_block=values[30_000:].astype("<f4").tobytes(), fmt="RowBinary")
    read = client.query(
        f"SELECT quantilesTDigestMerge(0.5, 0.95, 0.99)(s) FROM "
        f"(SELECT s FROM {table} UNION ALL SELECT {QUANTILES.replace('(', 'State(')}(v) FROM {raw})"
    ).result_rows[0][0]
    client.command(f"DROP TABLE {raw}")
    assert read == pytest.approx(np.quantile(values, LEVELS).tolist(), rel=0.01)


def test_the_order_and_grouping_of_merges_do_not_matter_much(client: Client, stored: Callable[..., str]) -> None:
    values = np.random.default_rng(12).lognormal(3, 1, 80_000).astype(np.float32)
    states = _tdigest_states(values, 8)
    ascending = np.sort(values)
    for order in (range(8), range(7, -1, -1), [3, 1, 4, 0, 5, 7, 2, 6]):
        table = stored(f"{QUANTILES}, Float32", [(number % 2, states[i]) for number, i in enumerate(order)])
        grouped = f"SELECT quantilesTDigestMergeState(0.5, 0.95, 0.99)(s) AS s FROM {table} GROUP BY g"
        for source in (table, f"({grouped})"):
            query = f"SELECT quantilesTDigestMerge(0.5, 0.95, 0.99)(s) FROM {source}"
            for level, quantile in zip(LEVELS, client.query(query).result_rows[0][0], strict=True):
                assert _rank_error(ascending, level, quantile) <= 0.01


def test_states_without_values_are_empty_to_the_engine(client: Client, stored: Callable[..., str]) -> None:
    none = np.arange(1)
    digest = stored(f"{QUANTILES}, Float32", [(0, state) for state in TDigests().states(none)])
    (quantiles,) = client.query(f"SELECT quantilesTDigestMerge(0.5, 0.95, 0.99)(s) FROM {digest}").result_rows[0]
    assert np.isnan(quantiles).all()
    visitors = stored("uniq, String", [(0, state) for state in UniqSets().states(none)])
    assert client.query(f"SELECT uniqMerge(s) FROM {visitors}").result_rows == [(0,)]
