"""A uniq state depends on the set of hashes alone: not on their order, their repetition, or how they were split."""

from collections.abc import Iterator
from itertools import chain
from random import Random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streams.sketches import uniq
from streams.sketches.uniq import UniqSets

SMALL_CAP = 8
KEYS = 4

# Zeros at the low end are what thinning goes by, so they must be common, and the hash 0 with them.
hashes = st.one_of(st.integers(0, 40), st.integers(0, 2**32 - 1), st.integers(0, 200).map(lambda i: i << 9))
Row = tuple[int, int]
Split = list[list[Row]]
rows = st.tuples(st.integers(0, KEYS - 1), hashes).map(lambda row: [row])
# Many rows from few draws, or hardly a set would pass the cap.
runs = st.builds(
    lambda key, first, step, length: [(key, first + step * i) for i in range(length)],
    st.integers(0, KEYS - 1),
    st.integers(0, 100),
    st.sampled_from([1, 2, 3, 64]),
    st.integers(1, 40),
)
batches = st.lists(st.lists(rows | runs, max_size=4).map(lambda parts: list(chain(*parts))), max_size=8)


@pytest.fixture(autouse=True, scope="module")
def _small_limits() -> Iterator[None]:
    """Every level and every thinning is met within a few rows."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(uniq, "CAP", SMALL_CAP)
        patch.setattr(uniq, "PENDING_ROWS", 16)
        yield


def _add(sets: UniqSets, batch: list[Row]) -> None:
    keys, values = zip(*batch, strict=True) if batch else ((), ())
    sets.add(np.array(keys, np.uint32), np.array(values, np.uint32))


def _built(*split: list[Row]) -> UniqSets:
    sets = UniqSets()
    for batch in split:
        _add(sets, batch)
    return sets


def _states(sets: UniqSets) -> list[bytes]:
    return sets.states(np.arange(KEYS))


def _expected(values: set[int]) -> bytes:
    """The state by its definition: the smallest degree whose multiples fit the cap."""
    degree = 0
    while len(kept := sorted(value for value in values if value % 2**degree == 0)) > SMALL_CAP:
        degree += 1
    return bytes([degree, len(kept)]) + np.array(kept, "<u4").tobytes()


@given(batches)
@settings(deadline=None)
def test_states_follow_their_definition(split: Split) -> None:
    members = [{value for batch in split for key, value in batch if key == wanted} for wanted in range(KEYS)]
    assert _states(_built(*split)) == [_expected(values) for values in members]


@given(batches, st.randoms(use_true_random=False))
@settings(deadline=None)
def test_order_repetition_and_split_do_not_show(split: Split, random: Random) -> None:
    whole = [row for batch in split for row in batch]
    again = whole + whole
    random.shuffle(again)
    assert _states(_built(*split)) == _states(_built(whole)) == _states(_built(again))


@given(batches, st.lists(st.integers(0, KEYS + 2), max_size=6))
@settings(deadline=None)
def test_reading_changes_nothing(split: Split, read: list[int]) -> None:
    sets = UniqSets()
    for batch in split:
        _add(sets, batch)
        sets.states(np.array(read, np.int64))
        sets.counts(np.array(read, np.int64))
        sets.dump()
    assert _states(sets) == _states(_built(*split))


@given(batches, st.permutations(range(KEYS)))
@settings(deadline=None)
def test_states_come_in_the_order_asked_for(split: Split, order: list[int]) -> None:
    sets = _built(*split)
    states = _states(sets)
    assert sets.states(np.array(order[:2])) == [states[key] for key in order[:2]]
    assert sets.states(np.array(order)) == [states[key] for key in order]


@given(batches, batches)
@settings(deadline=None)
def test_a_loaded_dump_goes_on_as_the_original(before: Split, after: Split) -> None:
    loaded = UniqSets()
    loaded.load(_built(*before).dump())
    for batch in after:
        _add(loaded, batch)
    original = _built(*before, *after)
    assert _states(loaded) == _states(original)
    assert loaded.dump(np.arange(KEYS)) == original.dump(np.arange(KEYS))


@given(batches, st.permutations(range(KEYS)))
@settings(deadline=None)
def test_a_dump_of_some_keys_loads_under_other_keys(split: Split, to: list[int]) -> None:
    sets = _built(*split)
    moved = UniqSets()
    for key in range(KEYS):
        moved.load(sets.dump(np.array([key])), np.array([to[key]]))
    assert [_states(moved)[to[key]] for key in range(KEYS)] == _states(sets)


@given(batches, batches, batches)
@settings(deadline=None)
def test_union_is_commutative_associative_and_idempotent(a: Split, b: Split, c: Split) -> None:
    x, y, z = (_built(*split).dump(np.arange(KEYS)) for split in (a, b, c))

    def union(*dumps: bytes) -> bytes:
        sets = UniqSets()
        for dump in dumps:
            sets.load(dump)
        return sets.dump(np.arange(KEYS))

    whole = _built(*a, *b, *c).dump(np.arange(KEYS))
    assert union(x, y) == union(y, x)
    assert union(union(x, y), z) == union(x, union(y, z)) == whole
    assert union(x, x) == x


@given(batches)
@settings(deadline=None)
def test_counts_are_exact_up_to_the_cap(split: Split) -> None:
    members = [{value for batch in split for key, value in batch if key == wanted} for wanted in range(KEYS)]
    counts = _built(*split).counts(np.arange(KEYS))
    for values, count in zip(members, counts.tolist(), strict=True):
        assert count == len(values) or len(values) > SMALL_CAP
