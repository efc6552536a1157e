"""What an SSE client is told of a task: `status`, `token`, `result` and `error`, each with an id that it may resume from."""

from __future__ import annotations

from typing import Any, NamedTuple

import orjson


class Told(NamedTuple):
    """One event. After a `final` one nothing follows."""

    id: str
    event: str
    data: dict[str, Any]
    final: bool = False

    def encode(self) -> bytes:
        """As `text/event-stream` has it; JSON holds no line break."""
        return b"id: %b\nevent: %b\ndata: %b\n\n" % (self.id.encode(), self.event.encode(), orjson.dumps(self.data))


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
