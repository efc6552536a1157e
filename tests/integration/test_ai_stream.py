"""AI tasks through the real stack: submitted to Kafka, answered by the stand-in model, told block by block, ended once."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from compose.local.model_http import stand_in_answer
from compose.local.stack import LocalStack
from tests.aistack import Run, ai_run
from topics.ai_events import SegmentCompleted, TaskCompleted, TextWritten

pytestmark = pytest.mark.stack

_FIRST = ["task_accepted", "attempt_started", "text_written"]
LONG = "A sentence of some length that says nothing at all. " * 50


@pytest.fixture
def new_run(stack: LocalStack, tmp_path: Path) -> Iterator[Callable[..., Run]]:
    """Makes the test's run; keyword arguments are settings."""
    with ExitStack() as ends:
        yield lambda **settings: ends.enter_context(ai_run(stack, tmp_path, **settings))


def test_tasks_end_once_through_a_kill_in_mid_stream(new_run: Callable[..., Run]) -> None:
    run = new_run(ai_texts_mb=0)
    run.rules(
        {"task": "slow", "answer_ms": 4_000},
        {"task": "stopped", "answer_ms": 60_000},
        {"task": "again", "fault": "429", "times": 1, "retry_after_s": 0.2},
        {"task": "broken", "fault": "cut", "times": 1},
        {"task": "refused", "fault": "400"},
    )
    for task_id in ("slow", "stopped", "quick", "again", "broken", "refused"):
        run.submitter.submit(task_id, user=f"user of {task_id}")
    run.submitter.submit("long", LONG)
    run.submitter.submit("unknown", task_type="horoscope")
    run.submitter.submit("other", model="gpt-99")
    run.submitter.flush()
    run.until(lambda: run.state("slow").get("partial"), "the slow answer begins to show")
    run.until(lambda: _told_by_owner(run, "slow")[:3] == _FIRST, "so do its committed events")
    run.until(lambda: run.state("stopped").get("partial"), "so does the one that is not wanted")
    run.submitter.cancel("stopped")
    run.submitter.flush()
    run.until(lambda: run.state("stopped").get("status") == "cancelled", "it is cancelled while it runs")
    assert run.state("slow")["status"] == "processing"
    run.worker.signal(9)
    everything = set(run.submitter.questions)
    run.until(lambda: run.ended() == everything, "all tasks are over")
    assert run.worker.codes.count(-9) == 1

    run.assert_told_soundly()
    told, calls = run.told(), run.calls()
    assert {task_id: type(told[task_id].end).__name__ for task_id in told} == {
        **dict.fromkeys(["slow", "quick", "again", "broken", "long"], "TaskCompleted"),
        **dict.fromkeys(["refused", "unknown", "other"], "TaskFailed"),
        "stopped": "TaskCancelled",
    }
    assert run.dead() == {"refused": "bad_request", "unknown": "unknown_type", "other": "model_not_allowed"}
    assert told["slow"].voided()["lost"] > 0 and calls["stopped/0"]["answered"] == 0
    assert (told["again"].voided()["rate_limited"], told["broken"].voided()["broken_stream"]) == (1, 1)
    for task_id in ("slow", "quick", "again", "broken"):
        assert calls[f"{task_id}/0"]["requests"] == told[task_id].attempts() == 1 + told[task_id].voided().total()
    assert "unknown/0" not in calls and "other/0" not in calls
    _assert_segments(run)
    _assert_owner_tells_the_same(run)
    _assert_rows(run)


def _assert_segments(run: Run) -> None:
    """Each has one answer, and the merge is of all."""
    events = run.told()["long"].events
    done = [event.segment for event in events if isinstance(event, SegmentCompleted)]
    assert sorted(done) == list(range(len(done))) and len(done) == 3
    end = run.told()["long"].end
    assert isinstance(end, TaskCompleted) and end.result is not None and end.result.startswith("This is Sluiceway's")
    assert [run.told()["long"].attempts(segment) for segment in (0, 1, 2, None)] == [
        run.calls()[f"long/{call}"]["requests"] for call in range(4)
    ]


def _assert_owner_tells_the_same(run: Run) -> None:
    """The owner's state is that of the topic, and its events are, after each of them; texts are ClickHouse's by now."""

    def let_go() -> bool:
        # It is done with a flush, and a flush wants a record; of a task that is over it changes nothing.
        for task_id in run.submitter.questions:
            run.submitter.cancel(task_id)
        return _figure(run, "texts_kept_bytes") == 0

    run.until(let_go, "all texts are let go of")
    for task_id, told in run.told().items():
        state = run.state(task_id)
        assert state["status"] == type(told.end).__name__.removeprefix("Task").lower()
        kept = [event for event in told.events if not isinstance(event, TextWritten)]
        for at in (0, len(kept) // 2, len(kept) - 1):
            after = [type(event).__struct_config__.tag for event in kept[at + 1 :]]
            assert _told_by_owner(run, task_id, f"?after={kept[at].id}") == after
    assert run.state("quick")["result"] == stand_in_answer(run.submitter.questions["quick"])
    assert run.state("slow")["lost_calls"] == run.told()["slow"].voided()["lost"]
    assert run.ask("/ai/tasks/nobody")[0] == 404
    assert run.ask("/ai/tasks/no%20id")[0] == 400
    _, body = run.ask("/ai/tasks?user=user%20of%20slow")
    assert [task["task_id"] for task in json.loads(body)["tasks"]] == ["slow"]
    _, body = run.ask("/ai/queue")
    queues = json.loads(body)["partitions"]
    assert sum(queue["completed"] for queue in queues) == 5
    assert sum(queue["dead_letters"] for queue in queues) == 3
    assert _figure(run, "outcome_completed") == 5
    code, metrics = run.ask("/metrics")
    assert code == 200 and b'outcome="completed"' in metrics and b'name="calls_running"' in metrics


def _told_by_owner(run: Run, task_id: str, after: str = "") -> list[str]:
    """The types of the events that the owner tells of a task."""
    _, body = run.ask(f"/ai/tasks/{task_id}/events{after}")
    return [event["type"] for event in json.loads(body)["events"]]


def _figure(run: Run, name: str) -> float:
    """The sum of a figure over all partitions."""
    return sum(partition["figures"].get(name, 0) for partition in run.worker.status()["partitions"])


def _assert_rows(run: Run) -> None:
    """ClickHouse shows each task as it ended."""

    def shown() -> dict[str, tuple[Any, ...]]:
        rows = run.rows("SELECT task_id, status, error_type, question, result, attempts, lost_calls FROM ai_tasks")
        return {str(task_id): tuple(rest) for task_id, *rest in rows}

    def true() -> dict[str, tuple[Any, ...]]:
        found = {}
        for task_id, question in run.submitter.questions.items():
            state = run.state(task_id)
            error = (state["error"] or {}).get("type", "")
            found[task_id] = (
                state["status"],
                error,
                question,
                state["result"] or "",
                state["attempts"],
                state["lost_calls"],
            )
        return found

    run.until(lambda: shown() == true(), "ClickHouse shows the tasks")
    (row,) = run.rows(
        "SELECT prompt_tokens > 0, completion_tokens > 0, duration_ms > 0 FROM ai_tasks WHERE task_id = 'slow'"
    )
    assert row == (True, True, True)
