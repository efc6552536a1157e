"""What must have become of the demo's AI tasks, from their questions alone: the gateway's word, the model's and ClickHouse's."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from compose.local.model_http import stand_in_answer

Row = Mapping[str, Any]


@dataclass(frozen=True)
class FoundTasks:
    """Tasks as the gateway tells of them, by id, `ai_tasks`, and what the stand-in model has counted, by `task/call`."""

    states: Mapping[str, Row] = field(default_factory=dict)
    rows: Sequence[Row] = ()
    calls: Mapping[str, Row] = field(default_factory=dict)

    def model_calls(self, task_id: str, name: str) -> int:
        """How many of a task's requests to the model are counted under `name`: `requests` or `answered`."""
        return sum(counts[name] for call, counts in self.calls.items() if call.split("/")[0] == task_id)

    def total(self, name: str) -> int:
        """The sum of a column of `ai_tasks`."""
        return sum(row[name] for row in self.rows)


def ai_differences(questions: Mapping[str, str], found: FoundTasks) -> list[str]:
    """What is wrong, a line each: every task is to be completed once, with the answer of its own question."""
    counts = Counter(row["task_id"] for row in found.rows)
    problems = [
        f"{task_id}: ai_tasks has it, and nobody submitted it" for task_id in counts if task_id not in questions
    ]
    for task_id, question in questions.items():
        answer = stand_in_answer(question)
        state = found.states.get(task_id, {})
        problems += _wrong(task_id, "the gateway's", state, {"status": "completed", "result": answer})
        if counts[task_id] != 1:
            problems.append(f"{task_id}: ai_tasks has {counts[task_id]} rows of it, not 1")
        for row in found.rows:
            if row["task_id"] == task_id:
                problems += _wrong(task_id, "ai_tasks", row, {"status": "completed", "result": answer})
                problems += _wrong_calls(task_id, row, found)
    return problems


def _wrong(task_id: str, whose: str, found: Row, expected: Row) -> list[str]:
    return [
        f"{task_id}: {whose} {name} is {found.get(name)!r}, not {value!r}"
        for name, value in expected.items()
        if found.get(name) != value
    ]


def _wrong_calls(task_id: str, row: Row, found: FoundTasks) -> list[str]:
    """One call counts; every other one was lost or tried again, and the model was asked for no more than were begun."""
    problems = []
    counted = row["calls"] - row["lost_calls"] - row["retries"]
    if counted != 1:
        problems.append(f"{task_id}: ai_tasks counts {counted} calls that came to something, not 1")
    requests = found.model_calls(task_id, "requests")
    if not 1 <= requests <= row["calls"]:
        problems.append(f"{task_id}: the model was asked {requests} times, and ai_tasks has {row['calls']} calls")
    if not found.model_calls(task_id, "answered"):
        problems.append(f"{task_id}: the model has never answered it")
    return problems
