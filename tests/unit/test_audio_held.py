"""Audio in memory: who is admitted, what is let go of first, and sets of seqs."""

from __future__ import annotations

import random
import struct
import tracemalloc
from collections import Counter

from streams.audio import seqs
from streams.audio.held import CHUNK_OVERHEAD, Budget, Shelf, memory_of
from streams.audio.rules import AudioRules
from streams.audio.session import Status
from tests.audiofold import World, chunk, opened
from topics.audio import Format, Tier

#: What a chunk of ten bytes takes.
TEN = memory_of(bytes(10))


def test_19_sessions_of_two_minutes_are_held_at_once_in_the_seeds_78_megabytes() -> None:
    world = World(capacity=78_000_000)
    names = [f"s{n}" for n in range(19)]
    for name in [*names, "s19"]:
        world.say(opened(name, rate=16_000), ("refuse", b"1"))
    # Three minutes of chunks of 128 ms, so that windows move on while segments are cut and stored.
    sound = bytes(4_096)
    for seq in range(1_406):
        for name in names:
            world.say(chunk(name, seq, data=sound), after_ms=128 * (name == "s0"))
        if seq % 100 == 0:
            world.settle()
    world.settle()
    statuses = Counter(session.status for session in world.fold.state.sessions.values())
    assert statuses == {Status.OPEN: 19, Status.REFUSED: 1}
    window = 120_000 * 32 + 938 * CHUNK_OVERHEAD
    for name in names:
        assert window - memory_of(sound) < world.fold.shelf.held_by(name) <= window
    assert (world.budget.dropped, world.side_reads) == (0, 0), "no byte was let go of and read again"
    assert world.budget.reserved == 19 * window <= 78_000_000


def test_a_window_is_as_long_as_its_tier_and_format_say() -> None:
    rules = AudioRules(partition=0, partitions=1)
    assert rules.window_bytes(opened(tier=Tier.PREMIUM)) == 300 * 16_000
    assert rules.window_bytes(opened(format=Format.OPUS, rate=48_000)) == 120 * 16_000
    # Memory is promised for chunks of 128 ms, and packets of 20.
    assert rules.window_memory(opened()) == 120 * 16_000 + 938 * CHUNK_OVERHEAD
    assert rules.window_memory(opened(format=Format.OPUS, rate=48_000)) == 120 * 16_000 + 6_000 * CHUNK_OVERHEAD


def test_the_smallest_chunks_take_no_more_memory_than_is_counted() -> None:
    """Chunks of one sample in memory, as the log gives them: each value an object of its own."""
    for count in (500, 1_400, 12_000, 25_000):
        budget = Budget(1 << 30)
        shelf = Shelf(budget)
        assert shelf.admit("s", 1 << 29)
        tracemalloc.start()
        try:
            before, _ = tracemalloc.get_traced_memory()
            for seq in range(1_000, 1_000 + count):
                shelf.put("s", seq, struct.pack("<h", seq % 30_000))
            shelf.intend("s", 1_000, 999 + count, 0)
            shelf.settle("s", 1_000, 999 + count, keep=True)
            after, _ = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert shelf.held / 2 < after - before <= shelf.held == budget.held


def test_a_flood_of_the_smallest_chunks_stays_within_the_budget() -> None:
    world = World(capacity=3_000_000)
    world.say(opened("flood"))
    for seq in range(20_000):
        world.say(chunk("flood", seq, data=b"ab"))
    world.settle()
    assert world.budget.held <= 3_000_000
    assert len(world.fold.shelf.window("flood")) <= 3_000_000 // CHUNK_OVERHEAD


def test_partitions_share_one_budget_and_give_it_back() -> None:
    budget = Budget(100)
    first, second = Shelf(budget), Shelf(budget)
    assert first.admit("a", 60)
    assert not second.admit("b", 60)
    first.close()
    assert second.admit("b", 60)
    assert budget.reserved == 60


def test_a_session_keeps_its_window_of_what_is_stored() -> None:
    shelf = Shelf(Budget(100 * TEN))
    shelf.admit("a", 5 * TEN)
    for seq in range(8):
        shelf.put("a", seq, b"x" * 10)
    shelf.intend("a", 0, 5, 1)
    assert shelf.held == 8 * TEN, "nothing unstored goes while there is room"
    shelf.settle("a", 0, 5, keep=True)
    assert [seq for seq, _ in shelf.window("a")] == [3, 4, 5, 6, 7]
    shelf.put("a", 8, b"x" * 10)
    assert [seq for seq, _ in shelf.window("a")] == [4, 5, 6, 7, 8]
    shelf.end("a")
    assert [seq for seq, _ in shelf.window("a")] == [6, 7, 8]


def test_under_pressure_windows_go_first_and_then_the_oldest_segments_but_none_under_way() -> None:
    budget = Budget(10 * TEN)
    first, second = Shelf(budget), Shelf(budget)
    for name, shelf in (("a", first), ("b", second)):
        assert shelf.admit(name, 5 * TEN)
    for seq in range(5):
        first.put("a", seq, b"x" * 10)
    first.intend("a", 0, 1, 10)
    first.intend("a", 2, 3, 30)
    first.settle("a", 0, 1, keep=True)
    for seq in range(6):
        second.put("b", seq, b"x" * 10)
    assert [seq for seq, _ in first.window("a")] == [2, 3, 4], "the stored ones went"
    second.intend("b", 0, 1, 20)
    second.intend("b", 2, 3, 40)
    second.busy("b", 0, True)
    second.put("b", 6, bytes(3 * TEN - CHUNK_OVERHEAD))
    assert [seq for seq, _ in first.window("a")] == [4], "of those not under way the oldest went"
    assert second.bytes_of("b", 0, 1) is not None
    assert budget.dropped == 1
    assert budget.held == first.held + second.held == 10 * TEN


def test_ranges_hold_what_was_added() -> None:
    rng = random.Random(1)
    ranges: seqs.Ranges = []
    held: set[int] = set()
    for _ in range(2_000):
        seq = rng.randrange(600)
        assert seqs.add(ranges, seq) == (seq not in held)
        held.add(seq)
        assert seqs.contains(ranges, seq)
    assert seqs.count(ranges) == len(held)
    assert {seq for first, last in ranges for seq in range(first, last + 1)} == held
    missing = {seq for first, last in seqs.gaps(ranges) for seq in range(first, last + 1)}
    assert missing == set(range(max(held))) - held
    assert seqs.union([(5, 6), (0, 1), (7, 9)]) == [(0, 1), (5, 9)]
    assert seqs.next_in_order([[0, 4], [6, 7]]) == 5
    assert seqs.next_in_order([[1, 4]]) == 0
