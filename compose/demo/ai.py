"""The demo's AI tasks: a dozen over HTTP, one of them followed while it is answered, the worker killed in the midst of that,
and what the gateway, the stand-in model and ClickHouse have of them compared with the questions."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from aiohttp import ClientError, ClientSession

from compose.demo.ai_truth import FoundTasks, ai_differences
from compose.demo.client import Refused, client, followed, json_of, posted
from compose.local.model_faults import NAME
from compose.settings import Settings
from sinks.clickhouse.sink import ClickHouseSink

#: An answer that takes as long as one of a real model, so that the kill falls into the midst of it.
SETTINGS: dict[str, Any] = {"ai_model": f"{NAME}-3000ms"}
TASKS = 12
TWICE_EVERY = 3
KILL_AT_TOKEN = 2
SUBMIT_WITHIN_S = 20.0
ANSWER_WITHIN_S = 60.0
SETTLE_S = 60.0
USER = "demo"
#: Answers are printed under what `say` prints, this wide.
_INDENT, _WIDTH = " " * 10, 80

_COLUMNS = ("task_id", "status", "result", "calls", "retries", "lost_calls")

Say = Callable[[str], None]


@dataclass
class AiOutcome:
    """What the demo saw, and what was wrong."""

    questions: dict[str, str] = field(default_factory=dict)
    submissions: int = 0
    found: FoundTasks = field(default_factory=FoundTasks)
    problems: list[str] = field(default_factory=list)


async def run_ai(
    settings: Settings, url: str, sink: ClickHouseSink, kill: Callable[[], str], say: Say, write: Say
) -> AiOutcome:
    """Submit the tasks at the gateway of this URL, follow one, wait until ClickHouse has the ends of all, compare. `kill` ends
    the worker; `write` prints without ending the line."""
    outcome = AiOutcome()
    async with client(url) as http:
        try:
            say(f"submitting {TASKS} AI tasks to the gateway, every third one twice; the answer to the first:")
            async with asyncio.timeout(SUBMIT_WITHIN_S):
                ids = await asyncio.gather(*(_submit(http, number, outcome) for number in range(TASKS)))
            async with asyncio.timeout(ANSWER_WITHIN_S):
                await _watch(http, ids[0], kill, say, _Paragraph(write), outcome)
            say("waiting for the ends of the others")
            outcome.found = await _found(http, settings, sink, outcome)
            outcome.problems += ai_differences(outcome.questions, outcome.found)
        except (ClientError, Refused) as error:
            outcome.problems.append(f"ai: {error}")
        except TimeoutError:
            outcome.problems.append(
                "ai: the gateway did not take the tasks, or did not tell an answer to its end, in time"
            )
    return outcome


# -- submitting --------------------------------------------------------------------------------------------------


async def _submit(http: ClientSession, number: int, outcome: AiOutcome) -> str:
    """Submit a task, or the same one again, as a client does that has not heard the answer; its id."""
    question = f"What is there to be said of the number {number}?"
    body = {"task_type": "question", "user": USER, "language": "English", "question": question}
    ids: set[str] = set()
    for _ in range(1 if number % TWICE_EVERY else 2):
        told = await posted(http, "/api/tasks", body, {"Idempotency-Key": f"demo-{number}"})
        ids.add(told["task_id"])
        outcome.submissions += 1
    if len(ids) != 1:
        outcome.problems.append(f"ai: one Idempotency-Key became the tasks {', '.join(sorted(ids))}")
    task_id = min(ids)
    outcome.questions[task_id] = question
    return task_id


# -- following ---------------------------------------------------------------------------------------------------


class _Paragraph:
    """Prints words as they come, indented and broken into lines."""

    def __init__(self, write: Say) -> None:
        self._write = write
        self._column = 0

    def add(self, text: str) -> None:
        """Print more of it."""
        for word in re.findall(r"\S+\s*|\s+", text):
            if self._column and self._column + len(word.rstrip()) > _WIDTH:
                self.end()
            if not self._column:
                self._write(_INDENT)
                self._column = len(_INDENT)
            self._write(word)
            self._column += len(word)

    def end(self) -> None:
        """End the line, if there is one."""
        if self._column:
            self._write("\n")
            self._column = 0


async def _watch(
    http: ClientSession, task_id: str, kill: Callable[[], str], say: Say, shown: _Paragraph, outcome: AiOutcome
) -> None:
    """Print an answer while it is told, and have the worker killed in the midst of it."""
    told: list[str] = []
    killed = void = False
    async for event in followed(http, f"/api/tasks/{task_id}/events"):
        if event.data.get("discard"):
            shown.end()
            say("its worker was lost: what it said is void, and another attempt begins")
            told, void = [], True
        elif event.name == "token":
            told.append(event.data["text"])
            shown.add(event.data["text"])
            if not killed and len(told) == KILL_AT_TOKEN:
                shown.end()
                say(f"in mid-answer: SIGKILL to {kill()}")
                killed = True
    shown.end()
    if not void:
        outcome.problems.append("ai: the worker's end did not interrupt the answer that was followed")
    if event.name != "result" or event.data["result"] != "".join(told):
        outcome.problems.append(f"ai: {task_id} was told as {''.join(told)!r}, and ended with {event.data}")


# -- what came of it ---------------------------------------------------------------------------------------------


async def _found(http: ClientSession, settings: Settings, sink: ClickHouseSink, outcome: AiOutcome) -> FoundTasks:
    """What is known of the tasks once ClickHouse has the ends of all, or the time is over."""
    deadline = time.monotonic() + SETTLE_S
    while True:
        rows = await sink.query(f"SELECT {', '.join(_COLUMNS)} FROM {sink.qualified('ai_tasks')}")
        found = [dict(zip(_COLUMNS, row, strict=True)) for row in rows]
        ended = {row["task_id"] for row in found if row["status"] in ("completed", "failed")}
        if ended >= outcome.questions.keys() or time.monotonic() > deadline:
            break
        await asyncio.sleep(0.3)
    states = {task_id: await json_of(http, f"/api/tasks/{task_id}") for task_id in outcome.questions}
    return FoundTasks(states, found, await json_of(http, f"{settings.ai_base_url.removesuffix('/v1')}/stand-in/calls"))
