"""The memory of ids against a plain dict: same answers, blocks, hours and size, with and without spilling."""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule

from streams.traffic.dedup import DedupIndex
from streams.traffic.spill import SpillFolder, SpillFull

Record = tuple[bytes, int]

# Few distinct halves, so that ids often agree in one half and differ in the other; and some spread like hashes.
_HALF = st.sampled_from([bytes(8), b"\xff" * 8, b"\x00" * 7 + b"\x80", b"\x01" + bytes(7), b"collide!"])
_COLLIDING = st.builds(bytes.__add__, _HALF, _HALF)
_SPREAD = st.integers(0, 400).map(lambda i: (i * 0x9E3779B97F4A7C15F39CC0605CEDC835 % 2**128).to_bytes(16, "big"))
_RECORDS = st.lists(st.tuples(st.one_of(_COLLIDING, _SPREAD), st.integers(480_000, 480_012)), max_size=60)
_MEMORY = st.sampled_from([0, 300, 2_000, 1 << 20])


class Model:
    """What the index should do, one id at a time."""

    def __init__(self) -> None:
        self.hours: dict[bytes, int] = {}
        self.new: list[Record] = []
        self.floor: int | None = None

    def add(self, records: Sequence[Record]) -> list[bool]:
        return [self._add(digest, hour, remember=True) for digest, hour in records]

    def load(self, hour: int, digests: Sequence[bytes]) -> None:
        for digest in digests:
            self._add(digest, hour, remember=False)

    def take_new(self) -> list[tuple[int, bytes]]:
        taken = [(h, d) for d, h in self.new if self.floor is None or h >= self.floor]
        self.new = []
        taken.sort(key=lambda pair: pair[0])
        return [(h, b"".join(d for _, d in group)) for h, group in itertools.groupby(taken, key=lambda pair: pair[0])]

    def expire(self, hour: int) -> list[int]:
        gone = {h for h in self.hours.values() if h < hour}
        self.hours = {d: h for d, h in self.hours.items() if h >= hour}
        self.floor = hour if self.floor is None else max(hour, self.floor)
        return sorted(gone)

    def _add(self, digest: bytes, hour: int, *, remember: bool) -> bool:
        if digest in self.hours:
            return False
        self.hours[digest] = hour if self.floor is None else max(hour, self.floor)
        if remember:
            self.new.append((digest, self.hours[digest]))
        return True


def columns(records: Sequence[Record]) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]:
    digests = np.frombuffer(b"".join(digest for digest, _ in records), dtype=np.uint8).reshape(-1, 16)
    return digests, np.array([hour for _, hour in records], dtype=np.int64)


def add(index: DedupIndex, records: Sequence[Record]) -> list[bool]:
    answer: list[bool] = index.add(*columns(records)).tolist()
    return answer


@pytest.fixture(scope="module")
def folder() -> Iterator[SpillFolder]:
    with tempfile.TemporaryDirectory() as path:
        spill = SpillFolder(Path(path))
        yield spill
        assert spill.nbytes == 0
        spill.close()


class AgainstADict(RuleBasedStateMachine):
    """Any sequence of calls, from a limit that spills every batch to one that never spills."""

    @initialize(memory=_MEMORY)
    def start(self, memory: int) -> None:
        self.path = tempfile.TemporaryDirectory()
        self.spill = SpillFolder(Path(self.path.name))
        self.index = DedupIndex(memory_bytes=memory, spill=self.spill)
        self.model = Model()

    @rule(records=_RECORDS)
    def add(self, records: list[Record]) -> None:
        assert add(self.index, records) == self.model.add(records)

    @rule()
    def take_new(self) -> None:
        assert self.index.take_new() == self.model.take_new()

    @rule(hour=st.integers(480_000, 480_012), digests=st.lists(st.one_of(_COLLIDING, _SPREAD), max_size=60))
    def load(self, hour: int, digests: list[bytes]) -> None:
        self.index.load(hour, b"".join(digests))
        self.model.load(hour, digests)

    @rule(hour=st.integers(479_999, 480_013))
    def expire(self, hour: int) -> None:
        assert self.index.expire(hour) == self.model.expire(hour)

    @rule()
    def count(self) -> None:
        # A rule, not an invariant: counting takes in the loaded blocks, which may as well wait for another call.
        assert len(self.index) == len(self.model.hours)

    def teardown(self) -> None:
        if hasattr(self, "index"):
            self.index.close()
            assert not list(Path(self.path.name).iterdir())
            self.spill.close()
            self.path.cleanup()


TestAgainstADict = AgainstADict.TestCase
TestAgainstADict.settings = settings(max_examples=150, stateful_step_count=30, deadline=None)


@given(records=_RECORDS, cuts=st.lists(st.integers(0, 60)), memory=_MEMORY)
@settings(deadline=None)
def test_how_a_sequence_is_split_changes_neither_answers_nor_blocks(
    folder: SpillFolder, records: list[Record], cuts: list[int], memory: int
) -> None:
    whole, split = (DedupIndex(memory_bytes=memory, spill=folder) for _ in range(2))
    edges = sorted({0, len(records), *(cut for cut in cuts if cut < len(records))})
    answers = [answer for a, b in itertools.pairwise(edges) for answer in add(split, records[a:b])]
    assert answers == add(whole, records)
    assert split.take_new() == whole.take_new()
    whole.close()
    split.close()


@given(records=_RECORDS, memory=_MEMORY)
@settings(deadline=None)
def test_blocks_restore_the_same_memory(folder: SpillFolder, records: list[Record], memory: int) -> None:
    first, restored = (DedupIndex(memory_bytes=memory, spill=folder) for _ in range(2))
    add(first, records)
    for hour, packed in first.take_new():
        restored.load(hour, packed)
    assert len(restored) == len(first)
    assert not any(add(restored, records))
    assert restored.take_new() == []
    assert restored.expire(480_006) == first.expire(480_006)
    assert len(restored) == len(first)
    first.close()
    restored.close()


def hashes(seed: int, count: int) -> npt.NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (count, 16), dtype=np.uint8)


def test_many_ids_through_spills_rewrites_and_expiry_stay_exact(tmp_path: Path) -> None:
    folder = SpillFolder(tmp_path)
    index = DedupIndex(memory_bytes=300_000, spill=folder)
    batches = [hashes(seed, 5_000) for seed in range(60)]
    most_files = 0
    for hour, batch in enumerate(batches):
        assert index.add(batch, np.full(5_000, 100 + hour)).all()
        assert index.take_new() == [(100 + hour, batch.tobytes())]
        assert index.expire(100 + hour - 40) == ([100 + hour - 41] if hour > 40 else [])
        most_files = max(most_files, len(list(tmp_path.iterdir())))
        assert index.bytes_held < 300_000 + 100_000 + 2 * len(index)
    assert 3 < most_files < 16
    for hour, batch in enumerate(batches):
        expired = hour < 59 - 40
        assert (index.add(batch, np.full(5_000, 200)) == expired).all()
    folder.close()


def test_a_rewrite_whose_ids_expire_under_way_leaves_no_file(tmp_path: Path) -> None:
    index = DedupIndex(memory_bytes=0, spill=SpillFolder(tmp_path))
    for seed in range(4):
        index.add(hashes(seed, 500), np.full(500, 5))
    index.add(hashes(4, 1), np.full(1, 5))  # spills the fourth run and begins to merge the four, 8 ids of 2,000
    assert index.expire(6) == [5]
    for seed in (0, 5, 6, 7):  # end the merge: nothing of it is live
        assert index.add(hashes(seed, 500), np.full(500, 9)).all()
    assert len(index) == 2_000
    assert index.bytes_spilled == 1_500 * 18
    index.close()
    assert not list(tmp_path.iterdir())


def test_ids_with_one_upper_half_are_told_apart(folder: SpillFolder) -> None:
    same_hi = np.zeros((3_000, 16), dtype=np.uint8)
    same_hi[:, 8:] = hashes(1, 3_000)[:, 8:]
    for memory in (0, 1 << 20):
        index = DedupIndex(memory_bytes=memory, spill=folder)
        assert index.add(same_hi[:1_000], np.full(1_000, 5)).all()
        assert index.add(same_hi[:2_000], np.full(2_000, 5)).tolist() == [False] * 1_000 + [True] * 1_000
        assert index.add(same_hi, np.full(3_000, 5)).sum() == 1_000
        index.close()


@pytest.mark.parametrize("memory", [0, 1 << 20])
def test_a_few_expired_ids_among_many_live_ones_are_forgotten_at_once(folder: SpillFolder, memory: int) -> None:
    # So few that no run is rewritten for them: what is physically there must still not be held.
    index, ids = DedupIndex(memory_bytes=memory, spill=folder), hashes(3, 1_000)
    index.add(ids, np.where(np.arange(1_000) < 20, 5, 9))
    index.add(hashes(4, 10), np.full(10, 9))
    assert index.expire(6) == [5]
    assert len(index) == 990
    assert index.add(ids, np.full(1_000, 9)).tolist() == [True] * 20 + [False] * 980
    assert not index.add(ids, np.full(1_000, 9)).any()
    index.close()


def test_two_million_ids_take_under_24_bytes_each() -> None:
    index = DedupIndex(memory_bytes=1 << 30, spill=None)
    for seed in range(40):
        index.add(hashes(seed, 50_000), np.full(50_000, 100 + seed))
    index.take_new()
    assert index.bytes_held / len(index) < 24
    for hour in range(100, 130):
        index.expire(hour)
        assert index.bytes_held / len(index) < 24


def test_without_a_spill_folder_a_full_memory_stops_and_forgets_nothing() -> None:
    index = DedupIndex(memory_bytes=20_000, spill=None)
    first, second = hashes(1, 2_000), hashes(2, 10)
    index.add(first, np.full(2_000, 5))
    with pytest.raises(SpillFull, match="2000 event ids take more than the 20000 bytes"):
        index.add(second, np.full(10, 5))
    assert len(index) == 2_000
    index.expire(6)
    assert index.add(second, np.full(10, 7)).all()


def test_a_torn_block_is_refused() -> None:
    with pytest.raises(ValueError, match="17 bytes for hour 9"):
        DedupIndex(memory_bytes=0, spill=None).load(9, bytes(17))


def test_hours_too_far_apart_are_refused_and_change_nothing() -> None:
    index = DedupIndex(memory_bytes=1 << 20, spill=None)
    with pytest.raises(ValueError, match="years away"):
        index.add(hashes(1, 2), np.array([900_000, 480_000]))
    index.add(hashes(1, 10), np.full(10, 480_000))
    with pytest.raises(ValueError, match="years away"):
        index.add(hashes(2, 10), np.full(10, 600_000))
    assert len(index) == 10
    assert index.expire(600_000) == [480_000]
    assert index.add(hashes(2, 10), np.full(10, 600_000)).all()
