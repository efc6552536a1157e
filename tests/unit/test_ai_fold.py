"""The AI fold, rule by rule: who may grant, who is heard, and what is kept of a model that nobody may call."""

from __future__ import annotations

from dataclasses import replace

import pytest

from streams.ai import granting
from streams.ai.effects import CallModel
from streams.ai.rules import ModelLimits
from tests.aifold import MODEL, RULES, World, dump, submit
from topics.ai import Answered, Block, CallFailed, Kind, Owner, Status, Usage

ONE_SLOT = replace(RULES, models={MODEL: ModelLimits(concurrency=1)}, batch_size=1)


def _asked(world: World) -> list[tuple[str, int, int]]:
    return [(call.task_id, call.term, call.attempt) for call in world.inflight if isinstance(call, CallModel)]


def _running(world: World) -> None:
    """Task a is asked for the first time, by the first owner."""
    world.say(submit("a"))
    world.settle_log()
    assert _asked(world) == [("a", 1, 1)]


def test_a_new_owner_grants_nothing_before_it_has_read_its_own_word() -> None:
    world = World(ONE_SLOT)
    world.say(submit("a"))
    world.say(submit("b"))
    world.settle_log()
    assert _asked(world) == [("a", 1, 1)], "there is one slot"
    world.work()
    world.flush()
    world.start()
    world.read()
    world.flush()
    assert world.fold.state.tasks["a"].status is Status.COMPLETED, "what the owner before has committed is folded"
    assert _asked(world) == [], "the slot is free, but whether other calls are under way is not known yet"
    world.settle_log()
    assert _asked(world) == [("b", 2, 1)]
    world.finish()
    assert world.calls["b", 0] == 1, "asked once, and never counted as lost"
    assert world.fold.state.totals["lost_calls"] == 0


def test_the_first_owner_waits_for_its_word_too() -> None:
    world = World(RULES)
    world.say(submit("a"))
    world.read()
    assert world.fold.state.tasks["a"].status is Status.PENDING


@pytest.mark.parametrize(("term", "attempt"), [(1, 2), (2, 1), (3, 2), (2, 3)])
def test_of_a_call_only_the_attempt_under_way_is_heard(term: int, attempt: int) -> None:
    world = World(RULES)
    _running(world)
    world.start()
    world.settle_log()
    assert _asked(world) == [("a", 2, 2)]
    world.say(Block("a", 0, 2, 2, 0, Kind.ANSWER, "the right one's"))
    place = ("a", 0, term, attempt)
    for record in (
        Block(*place, 1, Kind.ANSWER, "another's"),
        CallFailed(*place, "bad_request", "no", None, 1, Usage(1, 1)),
        Answered(*place, 1, True, 1, Usage(1, 1)),
    ):
        world.say(record)
        world.read()
    task = world.fold.state.tasks["a"]
    assert (task.status, task.said(Kind.ANSWER)) == (Status.PROCESSING, "the right one's")
    assert task.calls[0].prompt_tokens == 0
    assert world.fold.state.totals["late_answers"] == 2
    world.say(Answered("a", 0, 2, 2, 1, True, 1, Usage(1, 1)))
    world.read()
    assert (task.status, task.result) == (Status.COMPLETED, "the right one's")


def test_an_answer_that_comes_after_its_lease_is_not_heard() -> None:
    world = World(replace(RULES, lease_ms=1_000))
    _running(world)
    world.idle(1_001)
    world.settle_log()
    assert world.fold.state.totals["retries"] == 1
    world.idle(1)
    world.settle_log()
    world.say(Answered("a", 0, 1, 1, 0, True, 1_500, Usage()))
    world.settle_log()
    assert world.fold.state.tasks["a"].status is Status.PROCESSING
    assert _asked(world)[-1] == ("a", 1, 2)


def test_an_owner_of_an_earlier_term_changes_nothing() -> None:
    world = World(RULES)
    _running(world)
    world.say(Owner(1))
    world.say(Owner(0))
    world.read()
    assert world.fold.state.term == 1
    assert world.fold.state.totals["lost_calls"] == 0


def test_models_that_are_not_allowed_leave_nothing_behind_but_their_tasks() -> None:
    world = World(RULES)
    for number in range(20):
        world.say(submit(f"t{number}", model=f"model-{number}"))
    world.settle()
    assert {task.error_type for task in world.fold.state.tasks.values()} == {"model_not_allowed"}
    assert set(world.fold.state.lines) <= {MODEL}


def test_the_time_in_which_nobody_owned_the_partition_is_not_the_tasks() -> None:
    """Both what was under way and what waited for its retry go on, however long nobody was there."""
    world = World(RULES, {("b", 0): ["retry"]})
    for task_id in "ab":
        world.say(submit(task_id))
    world.settle_log()
    world.inflight.reverse()
    world.work()
    world.settle_log()
    world.start()
    world.say(submit("c"), after_ms=10 * RULES.lease_ms)
    made = world.finish()
    assert {task_id: task[0] for task_id, task in made.tasks.items()} == dict.fromkeys("abc", Status.COMPLETED)
    totals = world.fold.state.totals
    assert (totals["lost_calls"], totals["retries"], world.calls["a", 0], world.calls["b", 0]) == (1, 1, 1, 2)


def test_a_record_looks_at_the_lines_that_it_changed_only(monkeypatch: pytest.MonkeyPatch) -> None:
    models = [f"m{number}" for number in range(10)]
    world = World(replace(RULES, models={model: ModelLimits() for model in models}))
    world.say(Owner(1))
    for model in models:
        world.say(submit(f"task-{model}", model=model))
    world.settle_log()
    looked: list[str] = []
    grant = granting._grant
    monkeypatch.setattr(
        granting, "_grant", lambda state, model, line: (looked.append(model), grant(state, model, line))
    )
    world.say(submit("again", model="m3"))
    world.idle(1)
    world.settle_log()
    assert looked == ["m3"]


def _answered(world: World, task_ids: str) -> None:
    for task_id in task_ids:
        world.say(submit(task_id, question=f"{task_id}: {'long ' * 100}"))
    world.finish()


def test_the_oldest_texts_are_let_go_of_once_clickhouse_has_them() -> None:
    world = World(replace(RULES, segment_chars=1_000, texts_bytes=5_000))
    _answered(world, "abcdef")
    tasks = world.fold.state.tasks
    assert not any(task.let_go for task in tasks.values()), "nobody else has them yet"
    world.show()
    world.flush()
    gone = [task_id for task_id, task in tasks.items() if task.let_go]
    assert gone and gone == list("abcdef")[: len(gone)] and world.fold.state.kept_bytes <= 5_000
    assert tasks["a"].result is None and "long" not in str(tasks["a"].save(tasks["a"].version)) + str(tasks["a"].origin)
    assert tasks["f"].result is not None
    assert b"long long" not in b"".join(value for key, value in world.changelog.items() if b"a" in key[1:])
    assert dump(world.restored()) == dump(world.fold)
    before = dict(world.rows)
    world.start()
    world.settle()
    world.show()
    assert world.rows == before, "their rows stay as they are"


def test_a_task_that_let_go_still_knows_what_it_was_asked() -> None:
    world = World(replace(RULES, segment_chars=1_000, texts_bytes=0))
    _answered(world, "a")
    world.show()
    world.flush()
    question = f"a: {'long ' * 100}"
    world.say(submit("a", question=question))
    world.say(submit("a", question=question + "?"))
    world.settle()
    assert world.fold.state.totals["duplicate"] == 1
    assert [letter.reason for letter in world.dead] == ["conflict"]
    assert world.calls["a", 0] == 1


def test_texts_that_a_webhook_is_to_be_told_are_kept() -> None:
    world = World(replace(RULES, texts_bytes=0))
    world.say(submit("a", webhook_url="https://example.com/hook"))
    while world.fold.state.open or not world.fold.state.tasks:
        world.settle_log()
        world.inflight = [effect for effect in world.inflight if isinstance(effect, CallModel)]
        world.work()
    world.show()
    world.flush()
    assert not world.fold.state.tasks["a"].let_go
    world.start()
    world.settle()
    world.show()
    world.flush()
    assert world.webhooks["a"] == 1 and world.fold.state.tasks["a"].let_go


def test_rows_that_clickhouse_has_not_are_counted_with_their_texts() -> None:
    world = World()
    for task_id in "abc":
        world.say(submit(task_id, question="x" * 10_000))
    world.settle()
    texts = sum(len(task.submit.question) + len(task.result or "") for task in world.fold.newest(None))
    assert texts > 60_000
    assert texts < world.fold.unwritten_bytes < texts + 20_000, "a row counts once, however often it changes"
    world.start()
    world.settle()
    assert world.fold.unwritten_bytes > texts, "nor is it forgotten by the next owner"
    world.show()
    assert world.fold.unwritten_bytes == 0
