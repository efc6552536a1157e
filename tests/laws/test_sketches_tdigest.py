"""A digest depends on the sequence of its key's values alone, and a dump goes on as the original would."""

from collections.abc import Iterator
from itertools import chain

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streams.sketches import centroids, tdigest
from streams.sketches.tdigest import TDigests

F32 = npt.NDArray[np.float32]

KEYS = 3
TAIL = 16

values = st.one_of(
    st.floats(0, 1e6, width=32),
    st.integers(0, 3).map(float),
    st.sampled_from([0.0, -0.0, float(np.finfo(np.float32).max), 1e-45]),
)
Row = tuple[int, float]
Split = list[list[Row]]


def _run(key: int, value: float, length: int) -> list[Row]:
    """Many rows from few draws, or hardly a tail would fill."""
    return [(key, value * (1 + i * 7 % length)) for i in range(length)]


runs = st.builds(_run, st.integers(0, KEYS - 1), st.floats(0, 1e6, width=32), st.integers(1, 2 * TAIL))
rows = st.tuples(st.integers(0, KEYS - 1), values).map(lambda row: [row])
batches = st.lists(st.lists(rows | runs, max_size=5).map(lambda parts: list(chain(*parts))), max_size=8)


@pytest.fixture(autouse=True, scope="module")
def _small_limits() -> Iterator[None]:
    """Tails fill, digests are compressed and chunks are cut within a few rows."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tdigest, "TAIL", TAIL)
        patch.setattr(tdigest, "PENDING_ROWS", 24)
        patch.setattr(tdigest, "CHUNK_CELLS", 100)
        patch.setattr(centroids, "SINGLETONS", 12)
        yield


def _add(digests: TDigests, batch: list[Row]) -> None:
    keys, added = zip(*batch, strict=True) if batch else ((), ())
    digests.add(np.array(keys, np.uint32), np.array(added, np.float32))


def _built(*split: list[Row]) -> TDigests:
    digests = TDigests()
    for batch in split:
        _add(digests, batch)
    return digests


def _everything(digests: TDigests) -> tuple[list[bytes], bytes]:
    keys = np.arange(KEYS)
    return digests.states(keys), digests.dump(keys)


def _pairs(state: bytes) -> tuple[F32, F32]:
    """Means and weights of a state of fewer than 16,384 centroids."""
    head = 1 if state[0] < 0x80 else 2
    pairs = np.frombuffer(state, "<f4", -1, head).reshape(-1, 2)
    count = state[0] if head == 1 else (state[0] & 0x7F) | state[1] << 7
    assert len(pairs) == count
    return pairs[:, 0], pairs[:, 1]


@given(batches)
@settings(deadline=None)
def test_how_a_sequence_is_split_does_not_show(split: Split) -> None:
    whole = [row for batch in split for row in batch]
    assert _everything(_built(*split)) == _everything(_built(whole)) == _everything(_built(*([row] for row in whole)))


@given(batches)
@settings(deadline=None)
def test_other_keys_do_not_show(split: Split) -> None:
    together = _built(*split).states(np.arange(KEYS))
    for key in range(KEYS):
        alone = _built([(0, value) for batch in split for wanted, value in batch if wanted == key])
        assert alone.states(np.array([0])) == [together[key]]


@given(batches, st.lists(st.integers(0, KEYS + 2), max_size=6))
@settings(deadline=None)
def test_reading_changes_nothing(split: Split, read: list[int]) -> None:
    digests = TDigests()
    for batch in split:
        _add(digests, batch)
        digests.states(np.array(read, np.int64))
        digests.dump()
    assert _everything(digests) == _everything(_built(*split))


@given(batches, batches)
@settings(deadline=None)
def test_a_loaded_dump_goes_on_as_the_original(before: Split, after: Split) -> None:
    loaded = TDigests()
    loaded.load(_built(*before).dump())
    for batch in after:
        _add(loaded, batch)
    assert _everything(loaded) == _everything(_built(*before, *after))


@given(batches, batches)
@settings(deadline=None)
def test_a_load_replaces_what_its_keys_held(held: Split, dumped: Split) -> None:
    digests = _built(*held)
    kept = digests.states(np.array([2]))
    digests.load(_built(*dumped).dump(np.array([1, 0])), np.array([1, 0]))
    assert digests.states(np.arange(KEYS)) == [*_built(*dumped).states(np.array([0, 1])), *kept]


@given(batches)
@settings(deadline=None)
def test_a_state_weighs_every_value_once_and_ascends(split: Split) -> None:
    for key, state in enumerate(_built(*split).states(np.arange(KEYS))):
        added = np.array([value for batch in split for wanted, value in batch if wanted == key], np.float32)
        means, weights = _pairs(state)
        assert weights.sum() == len(added)
        assert (np.diff(means) >= 0).all()
        if len(added):
            assert added.min() <= means[0] and means[-1] <= added.max()
        if len(added) <= centroids.SINGLETONS:
            assert means.tolist() == sorted(abs(added).tolist())


@given(st.sampled_from([float("nan"), float("inf"), -1.0, -1e-45]), batches)
@settings(deadline=None)
def test_what_is_no_response_time_is_refused_whole(bad: float, split: Split) -> None:
    digests = _built(*split)
    with pytest.raises(ValueError, match="finite"):
        digests.add(np.array([0, 0], np.uint32), np.array([1.0, bad], np.float32))
    assert _everything(digests) == _everything(_built(*split))


@pytest.mark.parametrize("order", ["random", "ascending", "descending"])
def test_centroids_stay_within_two_buckets_after_many_passes(order: str) -> None:
    added = np.random.default_rng(5).lognormal(3, 2, 60_000).astype(np.float32)
    if order != "random":
        added = np.sort(added)[:: 1 if order == "ascending" else -1].copy()
    digests = TDigests()
    digests.add(np.zeros(len(added), np.uint32), added)
    means, weights = _pairs(digests.states(np.array([0]))[0])
    assert len(means) <= centroids.BUCKETS
    ends = np.cumsum(weights, dtype=np.float64)
    upper, lower = (centroids._scale(level / len(added)) for level in (ends - 0.5, ends - weights + 0.5))
    assert (upper - lower)[weights > 1].max() <= 2.5
