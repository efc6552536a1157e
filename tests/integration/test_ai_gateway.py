"""AI tasks over HTTP, through the real stack: submitted, asked after, listed, cancelled, at any gateway."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from httpx_sse import ServerSentEvent, connect_sse

from compose.local.model_http import stand_in_answer
from compose.local.stack import LocalStack
from tests.aiclient import ask, new_task, state
from tests.aistack import Run, ai_run
from tests.audiostack import Gateway
from topics import specs
from topics.ai import Outcome, decode

pytestmark = pytest.mark.stack


@pytest.fixture
def run(stack: LocalStack, tmp_path: Path) -> Iterator[Run]:
    """A worker."""
    with ai_run(stack, tmp_path) as made:
        yield made


@pytest.fixture
def gateway(run: Run) -> Iterator[Gateway]:
    """A gateway before it."""
    made = Gateway(run, "gateway").start()
    yield made
    made.stop()


def test_a_task_from_its_submission_to_its_end(run: Run, gateway: Gateway) -> None:
    key = {"Idempotency-Key": "first"}
    run.until(lambda: ask(gateway, "POST", "/api/tasks", new_task("Why?"), **key)[0] == 202, "a task is taken")
    code, told = ask(gateway, "POST", "/api/tasks", new_task("Why?"), **key)
    task_id = told["task_id"]
    assert code == 202 and ask(gateway, "POST", "/api/tasks", new_task("How?"), **key)[0] == 422
    run.until(lambda: state(gateway, task_id).get("status") == "completed", "it is done")
    answered = state(gateway, task_id)
    assert answered["result"] == stand_in_answer("Why?") and answered["attempts"] == 1
    assert len(run.calls()) == 1, "the same key is the same task"

    run.rules({"answer_ms": 60_000})
    endless = ask(gateway, "POST", "/api/tasks", new_task("For ever?"))[1]["task_id"]
    run.until(lambda: bool(state(gateway, endless).get("partial")), "the model is answering")
    assert ask(gateway, "DELETE", f"/api/tasks/{endless}")[1]["status"] == "cancelled"
    _, page = ask(gateway, "GET", "/api/tasks?user=ada&status=cancelled")
    assert [task["task_id"] for task in page["tasks"]] == [endless]
    assert ask(gateway, "GET", "/api/tasks/never")[0] == 404


def test_an_answer_is_followed_through_a_kill_and_another_gateway(run: Run, gateway: Gateway) -> None:
    run.rules({"answer_ms": 3_000})
    run.until(lambda: ask(gateway, "POST", "/api/tasks", new_task("To warm up?"))[0] == 202, "a task is taken")
    task_id = ask(gateway, "POST", "/api/tasks", new_task("What?"))[1]["task_id"]
    first: list[ServerSentEvent] = []
    for event in followed(gateway, task_id):
        first.append(event)
        if event.event == "token":
            break
    run.worker.signal(9)
    other = Gateway(run, "other").start()
    try:
        rest: list[ServerSentEvent] = []

        def ended() -> bool:
            # A stream ends when the worker is away; the client goes on after the last event that it has.
            for event in followed(other, task_id, (first + rest)[-1].id):
                rest.append(event)
            return bool(rest) and rest[-1].event == "result"

        run.until(ended, "the answer is told")
        events = first + rest
        assert len({event.id for event in events}) == len(events), "nothing is told twice"
        assert [event.event for event in events[:2]] == ["status", "status"]
        shown: list[str] = []
        for event in events:
            told = event.json()
            if told.get("discard"):
                shown = []
            elif event.event == "token":
                shown.append(told["text"])
        assert any(event.json().get("error_type") == "lost" for event in events), "the first attempt was lost"
        assert "".join(shown) == events[-1].json()["result"] == stand_in_answer("What?")
        for at in (other, gateway):
            assert status_of(at, task_id, events[-1].id) == 204, "a browser asks no more"
        again = list(followed(gateway, task_id))
        assert again[-1].json() == events[-1].json() and "".join(text_of(again)) == "".join(shown)
        assert status_of(gateway, "never") == 404 and status_of(gateway, "no id") == 400
    finally:
        other.stop()


def test_what_is_submitted_while_kafka_is_away_is_answered_and_handed_on(run: Run, gateway: Gateway) -> None:
    run.until(lambda: ask(gateway, "POST", "/api/tasks", new_task("To warm up?"))[0] == 202, "a task is taken")
    run.stack.kafka.stop()
    key = {"Idempotency-Key": "while away"}
    code, told = ask(gateway, "POST", "/api/tasks", new_task("Who?"), **key)
    task_id = told["task_id"]
    assert code == 202
    assert ask(gateway, "POST", "/api/tasks", new_task("Who?"), **key)[1]["task_id"] == task_id
    run.until(lambda: state(gateway, task_id).get("status") == "completed", "the gateway answers it by itself")
    assert [event.event for event in followed(gateway, task_id)][-1] == "result"

    run.stack.kafka.start()
    run.until(lambda: run.state(task_id).get("status") == "completed", "its owner has it")
    assert run.state(task_id)["result"] == state(gateway, task_id)["result"] == stand_in_answer("Who?")
    read = [(key, decode(key, value, list(headers.items()))) for key, value, headers in run.read(specs.AI_TASKS)]
    (outcome,) = [record for key, record in read if key == task_id.encode()]
    assert isinstance(outcome, Outcome) and outcome.submit is not None, "one record is the task and its end"
    assert outcome.submit.question == "Who?" and outcome.result == stand_in_answer("Who?")
    assert sum(called["requests"] for call, called in run.calls().items() if call.startswith(f"{task_id}/")) == 1


def followed(gateway: Gateway, task_id: str, last_id: str = "") -> Iterator[ServerSentEvent]:
    """A task's events as an SSE client hears them."""
    headers = {"Last-Event-ID": last_id} if last_id else {}
    with httpx.Client(timeout=20) as client:
        try:
            with connect_sse(client, "GET", f"{gateway.url}/api/tasks/{task_id}/events", headers=headers) as source:
                if source.response.status_code == 200:
                    yield from source.iter_sse()
        except httpx.TransportError:
            return


def status_of(gateway: Gateway, task_id: str, last_id: str = "") -> int:
    """How a request for a task's events is answered."""
    headers = {"Last-Event-ID": last_id} if last_id else {}
    return httpx.get(f"{gateway.url}/api/tasks/{task_id}/events", headers=headers, timeout=10).status_code


def text_of(events: list[ServerSentEvent]) -> list[str]:
    """The answer as it was told."""
    return [event.json()["text"] for event in events if event.event == "token"]
