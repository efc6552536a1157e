"""The audio fold as the runtime sees it: rows that are shown once, a log made anew, records in the wrong partition."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from streams.audio import outcomes
from streams.audio.effects import Assemble, PutSegment, RemoveSegments
from streams.audio.session import Kept, Status
from streams.runtime.fold import Position
from tests.audiofold import RULES, Close, World, assert_bounded, assert_whole, chunk, opened, pcm, written
from topics.audio import CONNECTION
from topics.audio_events import SessionOpened, SessionResumed, decode_event
from topics.records import Emit
from topics.rows import AUDIO_SEGMENTS_ROWS, AUDIO_SESSIONS_ROWS
from topics.specs import AUDIO_CHUNKS


def shown(world: World) -> dict[str, list[dict[str, Any]]]:
    """All rows that are to be written, which are then written."""
    found: dict[str, list[dict[str, Any]]] = {AUDIO_SESSIONS_ROWS: [], AUDIO_SEGMENTS_ROWS: []}
    while (done := world.fold.materialise()) is not None:
        for table, rows in done.rows.items():
            found[table] += rows.to_pylist()
        world.fold.materialised(done)
    return found


def test_rows_are_of_committed_state_and_written_again_after_a_crash_that_kept_them() -> None:
    world = World()
    world.say(opened())
    world.talk("s", 0, 70)
    world.read()
    assert shown(world)[AUDIO_SESSIONS_ROWS] == []
    world.settle()
    (session,) = shown(world)[AUDIO_SESSIONS_ROWS]
    assert (session["status"], session["last_seq"], session["version"] >> 48) == ("open", 70, 1)
    assert shown(world)[AUDIO_SESSIONS_ROWS] == []
    world.say(Close("s"))
    world.settle()
    world.start()
    rows = shown(world)
    assert [row["status"] for row in rows[AUDIO_SESSIONS_ROWS]] == ["closed"]
    assert [row["status"] for row in rows[AUDIO_SEGMENTS_ROWS]] == ["removed", "removed"]
    world.idle(1)
    world.settle()
    shown(world)
    world.idle(1)
    world.settle()
    world.start()
    assert shown(world)[AUDIO_SESSIONS_ROWS] == [], "a restore knows what was shown"


def test_of_a_log_made_anew_what_was_not_stored_is_a_dead_letter_and_the_session_goes_on() -> None:
    world = World()
    world.say(opened())
    world.talk("s", 0, 64)
    world.settle()
    world.talk("s", 65, 66)
    world.say(chunk("s", 64))
    world.read()
    world.flush()
    world.log.clear()
    world.cursor, world.epoch = 0, 2
    world.start()
    world.append(*written(chunk("s", 65)), 70_000)
    world.append(*written(chunk("s", 70)), 0)
    world.say(Close("s"))
    world.settle()
    assert_whole(world)
    saved = world.saved()["s"]
    spans = [(s.first_seq, s.last_seq, s.kept.name) for s in saved.segments]
    assert spans[1:] == [(58, 64, "FAILED"), (65, 65, "STORED"), (70, 70, "STORED")]
    assert [letter.reason for letter in world.dead] == ["segment_failed"]
    assert world.recordings["s"].failed == ((58, 64),)


def test_a_record_in_the_wrong_partition_is_sent_on_once() -> None:
    world = World(replace(RULES, partition=0, partitions=2))
    names = [f"s{n}" for n in range(20)]
    for name in names:
        world.say(opened(name))
    world.read()
    flush = world.fold.seal(Position(1, world.folded))
    sent = [emit for emit in flush.emits if emit.topic == AUDIO_CHUNKS]
    assert 0 < len(sent) < len(names)
    assert all(emit.partition == 1 and ("rerouted" in dict(emit.headers)) for emit in sent)
    assert {emit.key for emit in sent}.isdisjoint(name.encode() for name in world.fold.state.sessions)
    again: Emit = sent[0]
    world.append(again.key, again.value, again.headers)
    world.read()
    assert [letter.reason for letter in world.fold.seal(Position(1, world.folded)).dead] == ["misrouted"]


def test_an_idle_record_is_wanted_while_a_session_is_open() -> None:
    world = World()
    assert world.fold.idle() is None
    world.say(opened())
    world.settle()
    assert world.fold.idle() is not None
    world.say(Close("s"))
    world.settle()
    assert world.fold.idle() is None


def test_a_slow_session_holds_the_log_for_a_minute_at_most() -> None:
    world = World()
    world.say(opened("slow"))
    world.say(opened("fast"))
    for seq in range(400):
        world.say(chunk("fast", seq), after_ms=1_000)
        if seq % 25 == 0:
            world.say(chunk("slow", seq // 25))
        if seq % 10 == 0:
            # Repeats alone do not hold it either.
            world.say(chunk("slow", 0))
        world.settle()
        behind_ms = world.now_ms - world.log[world.cursor].append_ms if world.cursor < len(world.log) else 0
        assert behind_ms <= 62_000


def test_bytes_of_what_could_not_be_stored_are_let_go_of() -> None:
    world = World(fails=True)
    world.say(opened())
    world.talk("s", 0, 62)
    world.settle()
    held = [seq for seq, _ in world.fold.shelf.window("s")]
    assert held == [58, 59, 60, 61, 62]


def with_a_failed_segment() -> World:
    """A session of three minutes, of which the second could not be stored; its end is folded, its recording wanted."""
    world = World()
    world.say(opened())
    world.talk("s", 0, 70)
    world.settle()
    world.fails = True
    world.talk("s", 71, 130)
    world.settle()
    world.fails = False
    world.talk("s", 131, 150)
    world.say(Close("s"))
    while world.folded < len(world.log) or any(isinstance(effect, PutSegment) for effect in world.inflight):
        world.read()
        world.flush()
        if world.inflight and isinstance(world.inflight[0], PutSegment):
            world.work()
        world.flush()
    assert [type(effect) for effect in world.inflight] == [Assemble]
    return world


def retry(world: World) -> None:
    """The dead letter of the failed segment is replayed."""
    (letter,) = [letter for letter in world.dead if letter.reason == "segment_failed"]
    world.append(letter.key, letter.value, letter.headers)


def assert_all_recorded(world: World) -> None:
    """The recording holds every chunk, and no segment is left beside it."""
    assert world.recorded["s"] == b"".join(pcm("s", seq) for seq in range(151))
    saved = world.saved()["s"]
    assert saved.status is Status.CLOSED and saved.recording is not None
    assert {segment.kept for segment in saved.segments} == {Kept.REMOVED} and world.objects == {}


@pytest.mark.parametrize("stored_first", [False, True])
def test_a_segment_replayed_while_its_recording_is_made_is_in_the_recording(stored_first: bool) -> None:
    world = with_a_failed_segment()
    assemble = world.inflight.pop()
    assert isinstance(assemble, Assemble)
    retry(world)
    world.read()
    world.flush()
    if stored_first:
        world.work()
    # Made all the while, of the segments that were stored when it began.
    made = outcomes.Recorded("audio/s/recording", 1, "0" * 32, 0, segments=len(assemble.sources))
    world.reports.append(outcomes.encode(made, "s", AUDIO_CHUNKS, 0))
    world.settle()
    assert_all_recorded(world)


def test_a_recording_that_failed_without_a_replayed_segment_is_made_with_it() -> None:
    world = with_a_failed_segment()
    assemble = world.inflight.pop()
    assert isinstance(assemble, Assemble)
    retry(world)
    world.read()
    world.flush()
    world.work()
    made = outcomes.Unrecorded("the store refused it", segments=len(assemble.sources))
    world.reports.append(outcomes.encode(made, "s", AUDIO_CHUNKS, 0))
    world.settle()
    assert_all_recorded(world)


@pytest.mark.parametrize("when", ["while they are removed", "once they are removed"])
def test_a_segment_replayed_after_the_others_are_removed_leaves_the_recording(when: str) -> None:
    world = with_a_failed_segment()
    world.settle()
    whole = world.recorded["s"]
    world.idle(RULES.remember_ms + 1)
    world.read()
    world.flush()
    assert [type(effect) for effect in world.inflight] == [RemoveSegments]
    if when == "once they are removed":
        world.work()
        world.flush()
        world.read()
    retry(world)
    world.settle()
    assert world.recorded["s"] == whole, "not made anew of the one segment"
    assert "unknown_session" in {letter.reason for letter in world.dead}


def test_a_newer_connection_is_told_once_whatever_is_folded_again() -> None:
    world = World()
    for name in (b"c1", b"c2", b""):
        world.append(*written(opened(), *([(CONNECTION, name)] if name else [])))
        world.talk("s", len(world.log), len(world.log))
    world.read()
    world.flush(commits=False)
    world.settle()
    world.start()
    world.settle()
    told = [decode_event(emit.value) for emit in world.events]
    connections = [(e.source_offset, e.connection) for e in told if isinstance(e, SessionOpened | SessionResumed)]
    assert connections == [(0, "c1"), (2, "c2")], "an open without a name is no connection of a gateway"


def test_sessions_that_begin_together_are_not_cut_together() -> None:
    names = [f"s{i}" for i in range(40)]
    world = World(replace(RULES, upload_after_ms=60_000, spread_ms=30_000, reorder_ms=0))
    for name in names:
        world.say(opened(name))
    for seq in range(200):
        for name in names:
            world.say(chunk(name, seq, 1_000), after_ms=25)
    world.read()
    world.flush()
    firsts, lengths = set(), set()
    for saved in world.saved().values():
        spans = [segment.last_seq - segment.first_seq + 1 for segment in saved.segments]
        firsts.add(spans[0])
        lengths |= set(spans[1:])
    assert min(firsts) >= 30 and max(firsts) <= 61 and len(firsts) >= 15
    assert lengths <= {60, 61}


def test_where_the_brokers_clock_went_back_flushes_between_decide_nothing() -> None:
    rules = replace(RULES, upload_after_ms=4_000, silence_ms=3_000, session_idle_ms=9_000, reorder_ms=1_000)
    steps = [0, -10_800, 0, 0, 0, 0, 0, 0, 7_000, 500, 500, 500, 1_500, 0]  # ms before each chunk of half a second
    made = []
    for often in (False, True):
        world = World(rules)
        world.say(opened())
        for seq, after_ms in enumerate(steps):
            world.say(chunk("s", seq, 500), after_ms=after_ms)
            if often:
                world.read()
                world.flush()
        world.say(Close("s"), after_ms=1_500)
        made.append(world.finish())
    assert made[0].segments == made[1].segments == {"s": [(0, 7, "REMOVED"), (8, 11, "REMOVED"), (12, 13, "REMOVED")]}


def test_the_cut_of_a_full_session_makes_no_segment_too_many() -> None:
    world = World(replace(RULES, segments_max=2))
    world.say(opened())
    world.talk("s", 2, 59)
    world.say(chunk("s", 0))
    world.say(chunk("s", 60), after_ms=1_000)
    world.idle(2_000)
    world.settle()
    assert_bounded(world)
    assert [(s.first_seq, s.last_seq) for s in world.saved()["s"].segments] == [(0, 0), (2, 59)]
    assert [letter.reason for letter in world.dead] == ["too_many_segments"]
