"""Laws of the file fold: whatever the batches, repeats, crashes and zombies, each job ends once, and leaves its result only."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from streams.files.rows import job_row
from tests.filesfold import MD5, RULES, World, assert_sound, dump, submit
from topics.files import Cancel, Converted, Idle, encode
from topics.records import Batch
from topics.specs import FILES_JOBS

IDS = ("a", "b", "c", "d")
ids = st.sampled_from(IDS)
pauses = st.sampled_from([0, 0, 100, 1_000, 2_000, 6_000, -500])
scripts = st.dictionaries(
    ids, st.lists(st.sampled_from(["ok", "retry", "refuse", "unverified"]), max_size=4), max_size=4
)
rules = st.builds(
    lambda concurrency, per_user, retries: replace(
        RULES, concurrency=concurrency, per_user=per_user, retries_max=retries, lost_max=1_000
    ),
    st.integers(1, 3),
    st.integers(1, 2),
    st.integers(0, 2),
)
BAD: list[tuple[bytes | None, bytes | None, Any]] = [
    (b"a", b"{}", (("type", b"submit"),)),
    (b"a", b"", (("type", b"who"),)),
    (b"../a", b"{}", (("type", b"cancel"),)),
    (None, b"x", ()),
    (b"a", b'{"job_id":"a","term":7,"attempt":1,"verify_ms":0}', (("type", b"verified"),)),
    # Of an attempt that is not under way: its key is not that of the job's result.
    encode(Converted("a", 1, 1_000, 10, MD5, 1_000, (), 80)),
    (b"a", b'{"job_id":"a"}', (("type", b"swept"),)),
    # Of an owner that there never was.
    (None, b'{"term":1000000000}', (("type", b"owner"),)),
]
moves = st.lists(
    st.one_of(
        st.tuples(st.just("submit"), ids, pauses),
        st.tuples(st.just("submit"), ids, pauses),
        st.tuples(st.just("cancel"), ids, pauses),
        st.tuples(st.just("idle"), pauses),
        st.tuples(st.just("bad"), st.sampled_from(BAD)),
        st.tuples(st.just("read"), st.integers(1, 3)),
        st.tuples(st.just("read"), st.just(100)),
        st.tuples(st.just("flush")),
        st.tuples(st.just("flush")),
        st.tuples(st.just("work"), st.integers(0, 5)),
        st.tuples(st.just("work"), st.integers(0, 5)),
        st.tuples(st.just("late")),
        st.tuples(st.just("die"), st.booleans()),
    ),
    max_size=60,
)


def _do(world: World, move: tuple[Any, ...]) -> None:
    match move:
        case ("submit", job_id, after_ms):
            form = "tape" if job_id == "d" else "mp3"
            world.say(submit(job_id, user=f"user {ord(job_id) % 2}", format=form), after_ms)
        case ("cancel", job_id, after_ms):
            world.say(Cancel(job_id), after_ms)
        case ("idle", after_ms):
            world.say(Idle(), after_ms)
        case ("bad", record):
            world.append(*record)
        case ("read", count):
            world.read(count)
        case ("flush",):
            world.flush()
        case ("work", at):
            world.work(at)
        case ("late",):
            world.upload_late()
        case ("die", sealed):
            if sealed:
                world.flush(commits=False)
            else:
                world.start()


def _world(how: Any, script: Any) -> World:
    return World(how, {job_id: list(said) for job_id, said in script.items()})


@settings(max_examples=200, deadline=None)
@given(moves, rules, scripts)
def test_every_job_ends_once_and_leaves_its_result_only(plan: Any, how: Any, script: Any) -> None:
    world = _world(how, script)
    for move in plan:
        _do(world, move)
    ends = world.finish()
    assert_sound(world)
    failed = {job_id for job_id, end in ends.items() if end == "failed"}
    told = ("retryd", "refused", "not_verified", "unknown_format", "lost_too_often")
    assert {(letter.key or b"").decode() for letter in world.dead if letter.reason in told} == failed


@settings(max_examples=100, deadline=None)
@given(moves, rules, scripts)
def test_a_restore_has_the_same_state(plan: Any, how: Any, script: Any) -> None:
    world = _world(how, script)
    for move in plan:
        _do(world, move)
        if move[0] == "flush":
            assert dump(world.restored()) == dump(world.fold)


@settings(max_examples=100, deadline=None)
@given(moves, rules, st.lists(st.integers(1, 5), min_size=1, max_size=10))
def test_batches_split_otherwise_come_to_the_same(plan: Any, how: Any, sizes: list[int]) -> None:
    world = World(how)
    for move in plan:
        _do(world, move if move[0] != "die" else ("flush",))
    world.finish()
    whole, parts = World(how), World(how)
    whole.fold.step(Batch.of(FILES_JOBS, 0, 0, len(world.log), world.log))
    at = number = 0
    while at < len(world.log):
        end = min(len(world.log), at + sizes[number % len(sizes)])
        parts.fold.step(Batch.of(FILES_JOBS, 0, at, end, world.log[at:end]))
        at, number = end, number + 1
    assert dump(whole.fold) == dump(parts.fold)
    assert whole.fold.state.emits == parts.fold.state.emits
    assert whole.fold.state.dead == parts.fold.state.dead
    assert whole.fold.state.effects == parts.fold.state.effects


@settings(max_examples=60, deadline=None)
@given(moves, rules, scripts)
def test_the_same_records_again_change_nothing_of_ended_jobs(plan: Any, how: Any, script: Any) -> None:
    world = _world(how, script)
    for move in plan:
        _do(world, move)
    ends = world.finish()
    before = copy.deepcopy({job.id: job.course for job in world.fold.state.jobs.values()})
    told, letters, bucket = len(world.events), len(world.dead), set(world.bucket)
    for record in list(world.log):
        if (record.key or b"").decode("ascii", "replace") in before:
            world.append(record.key, record.value, record.headers)
    world.settle()
    assert world.ends() == ends and world.bucket == bucket
    assert {job.id: job.course for job in world.fold.state.jobs.values()} == before
    assert len(world.events) == told and not world.inflight
    assert all(letter.reason in ("invalid", "bad_type", "bad_id") for letter in world.dead[letters:])


def _lived(count: int) -> tuple[World, bool]:
    """The life of five jobs, as many moves of it, and whether it was all of it."""
    world = World(RULES, {"a": ["retry"], "c": ["refuse"], "e": ["unverified"]})
    for job_id in "abcde":
        _do(world, ("submit", job_id, 10))
    for move in range(count):
        (lambda: world.read(1), world.flush, world.work)[move % 3]()
        if move % 3 == 2 and world.folded == len(world.log) and not (world.inflight or world.reports):
            if not world.fold.state.open:
                return world, True
            assert world.wake is not None
            world.say(Idle(), world.wake.after_ms)
    return world, False


def test_a_life_survives_a_crash_after_every_move() -> None:
    calm = _lived(10_000)[0].finish()
    assert list(calm.values()) == ["completed", "completed", "failed", "failed", "completed"]
    count, whole = 0, False
    while not whole:
        world, whole = _lived(count)
        world.start()
        ends = world.finish()
        assert_sound(world)
        # A refusal that was lost with its worker is asked for again, and another attempt succeeds then.
        assert {**ends, "c": "failed"} == calm, f"a crash after move {count}"
        count += 1
    assert count > 50


def test_of_failed_jobs_only_those_whose_result_was_refused_keep_its_sum() -> None:
    """By which the storage statistics tell results that were not verified from those that never came."""
    world = World(RULES, {"a": ["unverified"] * 9, "b": ["unverified", "refuse"], "c": ["refuse"], "d": ["unverified"]})
    for job_id in IDS:
        world.say(submit(job_id))
    assert world.finish() == {"a": "failed", "b": "failed", "c": "failed", "d": "completed"}
    rows = [job_row(world.fold.state.jobs[job_id], 0) for job_id in IDS]
    assert [row["error_type"] for row in rows] == ["not_verified", "refused", "refused", ""]
    assert [row["checksum"] for row in rows] == [MD5, "", "", MD5]
