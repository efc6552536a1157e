"""AI tasks over HTTP, through the real stack: submitted, asked after, listed, cancelled, at any gateway."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from compose.local.model_http import stand_in_answer
from compose.local.stack import LocalStack
from tests.aistack import Run, ai_run
from tests.audiostack import Gateway

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


def ask(gateway: Gateway, method: str, path: str, body: Any = None, **headers: str) -> tuple[int, dict[str, Any]]:
    """Status and JSON of an answer."""
    data = None if body is None else json.dumps(body).encode()
    asked = urllib.request.Request(gateway.url + path, data, headers, method=method)
    if data is not None:
        asked.add_header("Content-Type", "application/json")
    try:
        with urllib.request.urlopen(asked, timeout=10) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


def new_task(question: str, **more: str) -> dict[str, str]:
    """The body of a submission."""
    return {"task_type": "question", "user": "ada", "language": "English", "question": question, **more}


def state(gateway: Gateway, task_id: str) -> dict[str, Any]:
    """A task as it is shown."""
    return ask(gateway, "GET", f"/api/tasks/{task_id}")[1]


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
