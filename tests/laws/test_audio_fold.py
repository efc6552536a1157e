"""Laws of the audio fold: whatever the batches, repeats and crashes, a log comes to the same segments, bytes and ends."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streams.audio.rules import AudioRules
from tests.audiofold import RULES, Close, World, assert_bounded, assert_whole, chunk, held_exactly, opened, written
from topics.audio import Idle, Tier

SESSIONS = ("a", "b", "c")
#: A minute becomes four seconds, so that short logs meet every deadline.
QUICK = replace(
    RULES,
    upload_after_ms=4_000,
    spread_ms=2_000,
    silence_ms=3_000,
    session_idle_ms=9_000,
    reorder_ms=1_000,
    window_ms={Tier.STANDARD: 5_000, Tier.PREMIUM: 8_000},
)
#: A session is full of four segments, and cut when three chunks wait: short logs meet these too.
NARROW = replace(QUICK, segments_max=4, pending_max=3)
#: Bytes of one and a half windows: of three sessions one is held, the others are read from the log.
TIGHT = 5_000 * 16 * 3 // 2

ids = st.sampled_from(SESSIONS)
#: The broker's clock may step back, when another broker leads.
pauses = st.sampled_from([0, 0, 100, 400, 500, 1_500, 3_500, 12_000, -2_000])
BAD: list[tuple[bytes | None, bytes | None, Any]] = [
    (b"a", b"x", (("type", b"chunk"), ("seq", b"1"), ("captured_ms", b"0"))),
    (b"a", b"xy", (("type", b"chunk"), ("seq", b"2"), ("captured_ms", b"0"), ("md5", b"0" * 32))),
    (b"a", b"xy", (("type", b"chunk"), ("seq", b"-1"), ("captured_ms", b"0"))),
    (b"../x", b"xy", (("type", b"chunk"), ("seq", b"1"), ("captured_ms", b"0"))),
    (b"a", None, ()),
    (None, b"xy", (("type", b"who"),)),
    (b"b", b"{}", (("type", b"stored"),)),
    (b"b", b'{"first_seq":0}', (("type", b"retry"),)),
    (b"c", b"", (("type", b"open"), ("format", b"mp3"), ("rate", b"8000"), ("channels", b"1"))),
]


class Said(NamedTuple):
    """One record of a plan, told in few words: what, of which session, which one, how long after the one before."""

    what: str
    session: str
    number: int
    after_ms: int

    def put(self, world: World) -> None:
        """Produce it."""
        match self.what:
            case "open":
                record = written(opened(self.session, user=f"user {self.number}"))
            case "chunk":
                record = written(chunk(self.session, self.number, 500))
            case "other":
                record = written(chunk(self.session, self.number, data=b"other " * 200))
            case "close":
                record = written(Close(self.session))
            case "idle":
                record = written(Idle())
            case _:
                record = BAD[self.number]
        world.append(*record, self.after_ms)


@st.composite
def streams(draw: st.DrawFn) -> list[Said]:
    """What producers write: sessions in turn, mostly in order, with repeats, jumps, late chunks and bad records."""
    nexts = dict.fromkeys(SESSIONS, 0)
    plan = [Said("open", name, 0, 0) for name in SESSIONS[: draw(st.integers(2, 3))]]
    for _ in range(draw(st.integers(0, 60))):
        name, pause = draw(ids), draw(pauses)
        match draw(st.integers(0, 19)):
            case 0:
                plan.append(Said("close", name, 0, pause))
            case 1:
                plan.append(Said("open", name, draw(st.integers(0, 1)), pause))
            case 2:
                plan.append(Said("bad", "", draw(st.integers(0, len(BAD) - 1)), pause))
            case 3 | 4:
                # One seq may come with other bytes: the first to come are the session's.
                what = draw(st.sampled_from(["chunk", "other"]))
                plan.append(Said(what, name, draw(st.integers(0, nexts[name])), pause))
            case 5:
                nexts[name] += draw(st.integers(1, 3))
            case _:
                for _ in range(draw(st.integers(1, 6))):
                    plan.append(Said("chunk", name, nexts[name], pause))
                    nexts[name] += 1
    return plan


def undisturbed(plan: list[Said], rules: AudioRules = QUICK, **how: Any) -> World:
    """All of it is produced, read and done without a fault."""
    world = World(rules, **how)
    for said in plan:
        said.put(world)
    return world


@settings(max_examples=150, deadline=None)
@given(streams(), st.data(), st.sampled_from([1 << 30, TIGHT]), st.sampled_from([QUICK, NARROW]))
def test_batches_flushes_and_crashes_change_nothing(
    plan: list[Said], data: st.DataObject, capacity: int, rules: AudioRules
) -> None:
    # Silence ends every session while faults go on.
    plan = [*plan, *[Said("idle", "", 0, 10_000)] * 2]
    world, rest, more = World(rules, capacity=capacity), list(plan), data.draw(st.integers(0, 40))
    while rest or more:
        more -= not rest
        match data.draw(st.integers(0, 9)):
            case 0 | 1 | 2 | 3:
                for _ in range(data.draw(st.integers(1, 12))):
                    if rest:
                        rest.pop(0).put(world)
            case 4 | 5:
                world.read(data.draw(st.integers(1, 9)))
            case 6 | 7:
                world.flush()
            case 8:
                world.work()
            case _:
                if data.draw(st.booleans()):
                    world.start()
                else:
                    world.flush(commits=False)
        assert held_exactly(world)
        assert_bounded(world)
    calm = undisturbed(plan, rules)
    assert world.finish() == calm.finish()
    assert_whole(world)
    assert world.fold.shelf.held == world.fold.shelf.reserved == 0
    # The log was held back far enough for all bytes to come into memory again.
    assert not world.side_reads or capacity == TIGHT


@settings(max_examples=60, deadline=None)
@given(streams(), st.data(), st.sampled_from([QUICK, NARROW]))
def test_a_crash_after_every_record_changes_nothing(plan: list[Said], data: st.DataObject, rules: AudioRules) -> None:
    world = World(rules)
    for said in plan:
        said.put(world)
        world.read()
        if data.draw(st.booleans()):
            world.flush()
            if data.draw(st.booleans()):
                world.work()
        world.start()
    assert world.finish() == undisturbed(plan, rules).finish()


@settings(max_examples=80, deadline=None)
@given(streams(), st.data())
def test_a_prefix_sent_again_changes_nothing(plan: list[Said], data: st.DataObject) -> None:
    plan = [Said("open", name, 0, 0) for name in SESSIONS] + plan
    at = data.draw(st.integers(0, len(plan)))
    again = [said._replace(after_ms=0) for said in plan[:at]]
    calm, repeated = undisturbed(plan).finish(), undisturbed(plan[:at] + again + plan[at:]).finish()
    assert repeated.segments == calm.segments
    assert repeated.objects == calm.objects
    assert repeated.recordings == calm.recordings
    assert {name: ends[:3] for name, ends in repeated.sessions.items()} == {
        name: ends[:3] for name, ends in calm.sessions.items()
    }
    assert set(repeated.dead) - set(calm.dead) == set()


@settings(max_examples=80, deadline=None)
@given(streams(), st.booleans())
def test_every_record_is_accounted_for(plan: list[Said], fails: bool) -> None:
    world = undisturbed(plan, fails=fails)
    world.finish()
    assert_whole(world)
    totals = world.fold.state.totals
    letters = len(world.dead) - totals["failed"] - totals["unrecorded"]
    told = ("accepted", "duplicate", "opened", "resumed", "closed", "idle", "rerouted", "stale")
    outcomes = totals["stored"] + totals["recorded"] + totals["unrecorded"] + totals["failed"]
    removed = sum(1 for record in world.log if ("type", b"removed") in record.headers)
    counted = sum(totals[name] for name in told) + letters + outcomes + removed
    assert counted == len(world.log)


@settings(max_examples=80, deadline=None)
@given(streams())
def test_tight_memory_is_never_exceeded_by_what_may_be_dropped(plan: list[Said]) -> None:
    world = World(QUICK, capacity=TIGHT)
    for said in plan:
        said.put(world)
        world.read()
        world.flush()
        assert held_exactly(world)
        assert world.budget.held <= TIGHT
    assert world.finish() == undisturbed(plan).finish()


def _lived(moves: int, rules: AudioRules = QUICK, **how: Any) -> tuple[World, bool]:
    """The life of two sessions, as many moves of it: a record folded, a flush, an effect done. Whether it was all of it."""
    world = World(rules, **how)
    for said in [
        Said("open", "a", 0, 0),
        Said("open", "b", 0, 0),
        *(Said("chunk", "ab"[seq % 2], seq // 2, 200) for seq in range(30)),
        Said("chunk", "a", 20, 100),
        Said("close", "a", 0, 100),
        Said("idle", "", 0, 3_000),
        Said("idle", "", 0, 10_000),
    ]:
        said.put(world)
    for move in range(moves):
        if move % 3 == 0:
            world.read(1)
        elif move % 3 == 1:
            world.flush()
        else:
            world.work()
        if move % 3 == 2 and world.folded == len(world.log) and not (world.inflight or world.reports):
            return world, True
    return world, False


@pytest.mark.parametrize("capacity", [1 << 30, 1], ids=["held", "read from the log"])
def test_a_life_survives_a_crash_after_every_move(capacity: int) -> None:
    calm = _lived(10_000)[0].finish()
    assert {name: ends[0] for name, ends in calm.sessions.items()} == {"a": "CLOSED", "b": "CLOSED"}
    moves, whole = 0, False
    while not whole:
        world, whole = _lived(moves, capacity=capacity)
        world.start()
        assert world.finish() == calm, f"a crash after move {moves}"
        moves += 1
    assert moves > 100
