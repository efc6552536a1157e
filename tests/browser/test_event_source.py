"""An AI task's events in a real browser: its own EventSource, through the real stack and a SIGKILL of the worker."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.async_api import BrowserContext

from compose.local.model_http import stand_in_answer
from compose.local.stack import LocalStack
from tests.aiclient import ask, new_task, state
from tests.aistack import Run, ai_run
from tests.audiostack import Gateway

pytestmark = pytest.mark.stack

#: Follows a task as a page would, and keeps what it hears. A lost connection has an event of the name `error`, without data.
FOLLOW = """
taskId => {
  window.heard = [];
  const source = new EventSource(`/api/tasks/${taskId}/events`);
  for (const name of ["status", "token", "result", "error"])
    source.addEventListener(name, event => {
      if (event.data) window.heard.push({id: event.lastEventId, name, told: JSON.parse(event.data)});
      if (event.data && (name === "result" || name === "error")) source.close();
    });
}
"""


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


async def test_a_browser_follows_an_answer_through_a_kill(browser: BrowserContext, run: Run, gateway: Gateway) -> None:
    run.rules({"answer_ms": 3_000})
    page = browser.pages[0]
    taken = lambda: ask(gateway, "POST", "/api/tasks", new_task("To warm up?"))[0] == 202  # noqa: E731
    await asyncio.to_thread(run.until, taken, "a task is taken")
    _, told = await asyncio.to_thread(ask, gateway, "POST", "/api/tasks", new_task("Where?"))
    task_id = told["task_id"]
    # Any page of the gateway: an EventSource asks its own origin.
    await page.goto(f"{gateway.url}/api/health")
    await page.evaluate(FOLLOW, task_id)
    await page.wait_for_function("window.heard.some(({name}) => name === 'token')")
    run.worker.signal(9)
    ended = lambda: state(gateway, task_id).get("status") == "completed"  # noqa: E731
    await asyncio.to_thread(run.until, ended, "the task is done")
    await page.wait_for_function("window.heard.at(-1).name === 'result'", timeout=30_000)
    heard = await page.evaluate("window.heard")
    assert len({event["id"] for event in heard}) == len(heard), "nothing is heard twice"
    shown: list[str] = []
    for event in heard:
        if event["told"].get("discard"):
            shown = []
        elif event["name"] == "token":
            shown.append(event["told"]["text"])
    assert any(event["told"].get("error_type") == "lost" for event in heard), "the first attempt was lost"
    assert "".join(shown) == heard[-1]["told"]["result"] == stand_in_answer("Where?")
