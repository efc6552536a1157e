"""The demo's judgement of AI tasks: silent about what is right, and a line for anything that is not."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from compose.demo.ai_truth import FoundTasks, ai_differences
from compose.local.model_http import stand_in_answer

QUESTIONS = {"a": "Why?", "b": "How?"}


def _found() -> FoundTasks:
    """The first was lost once with its worker."""
    ends = {task_id: {"status": "completed", "result": stand_in_answer(text)} for task_id, text in QUESTIONS.items()}
    rows = [
        {"task_id": "a", **ends["a"], "calls": 2, "lost_calls": 1, "retries": 0},
        {"task_id": "b", **ends["b"], "calls": 1, "lost_calls": 0, "retries": 0},
    ]
    calls = {"a/0": {"requests": 2, "answered": 1}, "b/0": {"requests": 1, "answered": 1}}
    return FoundTasks(ends, rows, calls)


def _with_row(which: str, **change: Any) -> FoundTasks:
    found = _found()
    return replace(found, rows=[{**row, **(change if row["task_id"] == which else {})} for row in found.rows])


def test_it_is_silent_about_what_is_right() -> None:
    assert ai_differences(QUESTIONS, _found()) == []


@pytest.mark.parametrize("change", [{"status": "failed"}, {"result": stand_in_answer("How?")}])
def test_it_tells_of_a_task_that_is_not_completed_or_has_anothers_answer(change: dict[str, Any]) -> None:
    found, name = _found(), next(iter(change))
    told = replace(found, states={**found.states, "a": {**found.states["a"], **change}})
    (problem,) = ai_differences(QUESTIONS, told)
    assert problem.startswith(f"a: the gateway's {name} is ")
    (problem,) = ai_differences(QUESTIONS, _with_row("a", **change))
    assert problem.startswith(f"a: ai_tasks {name} is ")


def test_it_tells_of_a_row_that_is_missing_or_there_twice_or_nobodys() -> None:
    found = _found()
    assert ai_differences(QUESTIONS, replace(found, rows=found.rows[1:])) == ["a: ai_tasks has 0 rows of it, not 1"]
    assert ai_differences(QUESTIONS, replace(found, rows=[*found.rows, found.rows[0]])) == [
        "a: ai_tasks has 2 rows of it, not 1"
    ]
    (problem,) = ai_differences(QUESTIONS, _with_row("b", task_id="c"))[:1]
    assert problem == "c: ai_tasks has it, and nobody submitted it"


def test_it_tells_of_calls_that_nobody_counted_and_of_answers_that_nobody_gave() -> None:
    found = _found()
    (problem,) = ai_differences(QUESTIONS, _with_row("a", lost_calls=0))
    assert problem == "a: ai_tasks counts 2 calls that came to something, not 1"
    more = {**found.calls, "a/1": {"requests": 1, "answered": 0}}
    (problem,) = ai_differences(QUESTIONS, replace(found, calls=more))
    assert problem == "a: the model was asked 3 times, and ai_tasks has 2 calls"
    none = {**found.calls, "b/0": {"requests": 1, "answered": 0}}
    assert ai_differences(QUESTIONS, replace(found, calls=none)) == ["b: the model has never answered it"]
