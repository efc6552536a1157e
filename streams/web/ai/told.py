"""What an SSE client is told of a task: `status`, `token`, `result` and `error`, each with an id that it may resume from."""

from __future__ import annotations

from typing import Any

from streams.web.sse import Told as Told


def status(event_id: str, task_id: str, word: str, **more: Any) -> Told:
    """The task's status. `discard` says that the tokens so far are void."""
    return Told(event_id, "status", {"task_id": task_id, "status": word, **more}, final=word == "cancelled")


def token(event_id: str, attempt: int, kind: str, text: str) -> Told:
    """More of the answer, or with kind `reasoning` of what the model thinks before it."""
    return Told(event_id, "token", {"kind": kind, "text": text, "attempt": attempt})


def result(event_id: str, state: dict[str, Any]) -> Told:
    """The whole answer: the task as `GET` shows it."""
    return Told(event_id, "result", state, final=True)


def error(event_id: str, state: dict[str, Any]) -> Told:
    """There will be none: the task as `GET` shows it."""
    return Told(event_id, "error", state, final=True)
