"""Laws of the AI fold: whatever the batches, repeats, crashes and answers, each task ends once, and as its model had it."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from streams.ai.rules import ModelLimits
from tests.aifold import MODEL, RULES, World, assert_sound, dump, submit
from topics import ai
from topics.ai import Cancel, Outcome, Status
from topics.records import Batch
from topics.specs import AI_TASKS

IDS = ("a", "b", "c", "d")
ids = st.sampled_from(IDS)
pauses = st.sampled_from([0, 0, 100, 1_000, 2_000, 40_000, -500])
outcomes = st.lists(st.sampled_from(["ok", "ok", "retry", "refuse"]), max_size=4)
rules = st.builds(
    lambda eager, size, concurrency, rate, texts_bytes: replace(
        RULES,
        eager=eager,
        batch_size=size,
        models={MODEL: ModelLimits(concurrency, rate)},
        deadline_ms=10**9,
        lease_ms=2 * 10**9,
        texts_bytes=texts_bytes,
    ),
    st.booleans(),
    st.integers(1, 4),
    st.integers(1, 4),
    st.sampled_from([0, 0, 2]),
    st.sampled_from([1 << 20, 1 << 20, 0, 300]),
)
BAD: list[tuple[bytes | None, bytes | None, Any]] = [
    (b"a", b"{}", (("type", b"submit"),)),
    (b"a", b"", (("type", b"who"),)),
    (b"../a", b"{}", (("type", b"cancel"),)),
    (None, b"x", ()),
    (
        b"a",
        b'{"task_id":"a","call":7,"term":1,"attempt":1,"block":0,"kind":"answer","text":"x"}',
        (("type", b"block"),),
    ),
    # Of an owner that there never was.
    (None, b'{"term":1000000000}', (("type", b"owner"),)),
]


def _question(task_id: str) -> str:
    return "a question of three parts that belongs to d" if task_id == "d" else f"what of {task_id}?"


def _submit(task_id: str, user: str = "u") -> ai.Submit:
    hook = "https://example.com/hook" if task_id == "b" else None
    return submit(task_id, question=_question(task_id), user=user, webhook_url=hook)


moves = st.lists(
    st.one_of(
        st.tuples(st.just("submit"), ids, pauses),
        st.tuples(st.just("cancel"), ids, pauses),
        st.tuples(st.just("elsewhere"), ids, pauses),
        st.tuples(st.just("idle"), pauses),
        st.tuples(st.just("bad"), st.sampled_from(BAD)),
        st.tuples(st.just("read"), st.integers(1, 3)),
        st.tuples(st.just("read"), st.just(100)),
        st.tuples(st.just("flush")),
        st.tuples(st.just("flush")),
        st.tuples(st.just("work"), st.integers(0, 5)),
        st.tuples(st.just("work"), st.integers(0, 5)),
        st.tuples(st.just("die"), st.booleans()),
        st.tuples(st.just("show")),
    ),
    max_size=60,
)


def _do(world: World, move: tuple[Any, ...]) -> None:
    match move:
        case ("submit", task_id, after_ms):
            world.say(_submit(task_id, f"user {ord(task_id) % 2}"), after_ms)
        case ("cancel", task_id, after_ms):
            world.say(Cancel(task_id), after_ms)
        case ("elsewhere", task_id, after_ms):
            world.say(Outcome(task_id, Status.COMPLETED, result="from a gateway"), after_ms)
        case ("idle", after_ms):
            world.idle(after_ms)
        case ("bad", record):
            world.append(*record)
        case ("read", count):
            world.read(count)
        case ("flush",):
            world.flush()
        case ("work", at):
            world.work(at)
        case ("show",):
            world.show()
        case ("die", sealed):
            if sealed:
                world.flush(commits=False)
            else:
                world.start()


@settings(max_examples=250, deadline=None)
@given(moves, rules, st.dictionaries(st.tuples(ids, st.integers(0, 3)), outcomes, max_size=4))
def test_every_task_ends_once_whatever_happens(plan: Any, how: Any, script: Any) -> None:
    world = World(how, {key: list(said) for key, said in script.items()})
    for move in plan:
        _do(world, move)
    world.finish()
    world.show()
    world.flush()
    assert_sound(world)
    failed = {task_id for task_id, made in world.made().tasks.items() if made[0] is Status.FAILED}
    letters = {
        (letter.key or b"").decode()
        for letter in world.dead
        if letter.reason in ("server_error", "bad_request", "lost_too_often")
    }
    assert letters == failed, "dead letters are exactly the failed tasks, and bad records"
    assert all(made[3] in ("NONE", "DELIVERED") for made in world.made().tasks.values())


@settings(max_examples=150, deadline=None)
@given(moves, rules, st.dictionaries(st.tuples(ids, st.integers(0, 3)), outcomes, max_size=4))
def test_a_restore_has_the_same_state(plan: Any, how: Any, script: Any) -> None:
    world = World(how, {key: list(said) for key, said in script.items()})
    for move in plan:
        _do(world, move)
        if move[0] == "flush":
            assert dump(world.restored()) == dump(world.fold)


@settings(max_examples=150, deadline=None)
@given(moves, rules, st.lists(st.integers(1, 5), min_size=1, max_size=10))
def test_batches_split_otherwise_come_to_the_same(plan: Any, how: Any, sizes: list[int]) -> None:
    world = World(how)
    for move in plan:
        _do(world, move if move[0] != "die" else ("flush",))
    world.finish()
    whole, parts = World(how), World(how)
    for fold in (whole.fold, parts.fold):
        fold.take_seat(1)
    whole.fold.step(Batch.of(AI_TASKS, 0, 0, len(world.log), world.log))
    at = number = 0
    while at < len(world.log):
        end = min(len(world.log), at + sizes[number % len(sizes)])
        parts.fold.step(Batch.of(AI_TASKS, 0, at, end, world.log[at:end]))
        at, number = end, number + 1
    assert dump(whole.fold) == dump(parts.fold)
    assert whole.fold.state.emits == parts.fold.state.emits
    assert whole.fold.state.dead == parts.fold.state.dead


@settings(max_examples=100, deadline=None)
@given(moves, rules)
def test_the_same_records_again_change_nothing_of_ended_tasks(plan: Any, how: Any) -> None:
    world = World(how)
    for move in plan:
        _do(world, move)
    made = world.finish()
    before = copy.deepcopy({task_id: task.save(task.version) for task_id, task in world.fold.state.tasks.items()})
    told, letters = len(world.events), len(world.dead)
    known = {(record.key or b"").decode("ascii", "replace") for record in world.log} & set(before)
    for record in list(world.log):
        if (record.key or b"").decode("ascii", "replace") in known:
            world.append(record.key, record.value, record.headers)
    world.settle()
    assert world.made().tasks == made.tasks
    assert {task_id: task.save(task.version) for task_id, task in world.fold.state.tasks.items()} == before
    assert len(world.events) == told and not world.inflight
    assert all(letter.reason in ("invalid", "bad_type", "bad_id") for letter in world.dead[letters:])


def _lived(count: int) -> tuple[World, bool]:
    """The life of three tasks, as many moves of it, and whether it was all of it."""
    world = World(RULES, {("a", 0): ["retry"], ("c", 0): ["refuse"]})
    for task_id in "abcd":
        world.say(_submit(task_id), 10)
    for move in range(count):
        (lambda: world.read(1), world.flush, world.work)[move % 3]()
        if move % 3 == 2 and world.folded == len(world.log) and not (world.inflight or world.reports):
            if not world.fold.state.open:
                return world, True
            assert world.wake is not None
            world.idle(world.wake.after_ms)
    return world, False


def test_a_life_survives_a_crash_after_every_move() -> None:
    calm = _lived(10_000)[0].finish()
    assert [made[0].value for made in calm.tasks.values()] == ["completed", "completed", "failed", "completed"]
    count, whole = 0, False
    while not whole:
        world, whole = _lived(count)
        world.start()
        made = world.finish()
        assert_sound(world)
        assert {name: made.tasks[name][0] for name in made.tasks} == {
            name: calm.tasks[name][0] for name in calm.tasks
        } or (
            # A refusal that was lost with its worker is asked for again, and answered then.
            made.tasks["c"][0] is Status.COMPLETED
        ), f"a crash after move {count}"
        count += 1
    assert count > 50
