"""A task that this gateway does itself, as those who follow it see it: its events so far, and a bell for new ones."""

from __future__ import annotations

import asyncio
import time
from typing import Any

from streams.ai.model_port import Delta
from streams.web.ai import told
from streams.web.ai.journal import Entry, State
from streams.web.ai.told import Told
from topics.ai import Kind, Status, Usage

#: Deltas are told together until there are so many characters, or so much time has passed.
_TOKEN_CHARS, _TOKEN_S = 2_000, 0.05


class Live:
    """Events of one start of the work; their ids are `journal-<starts>-<number>`."""

    def __init__(self, entry: Entry) -> None:
        self.entry = entry
        self.events: list[Told] = []
        self.attempt = entry.starts
        self.over = False
        self._bell = asyncio.Event()
        self._said: dict[Kind, list[str]] = {Kind.ANSWER: [], Kind.REASONING: []}
        self._open: list[str] = []
        self._open_kind = Kind.ANSWER
        self._open_since = 0.0
        self._tell(told.status("", entry.task_id, Status.PENDING))

    def began(self, attempt: int) -> None:
        """See `direct.Listener`."""
        self.attempt = attempt
        self._tell(told.status("", self.entry.task_id, Status.PROCESSING, attempt=attempt))

    def wrote(self, delta: Delta) -> None:
        """See `direct.Listener`."""
        self._said[delta.kind].append(delta.text)
        if delta.kind is not self._open_kind:
            self._flush()
        if not self._open:
            self._open_kind, self._open_since = delta.kind, time.monotonic()
        self._open.append(delta.text)
        if sum(map(len, self._open)) >= _TOKEN_CHARS or time.monotonic() - self._open_since >= _TOKEN_S:
            self._flush()

    def discarded(self, error_type: str, retry_after_s: float) -> None:
        """See `direct.Listener`."""
        self._flush()
        for texts in self._said.values():
            texts.clear()
        more = {"error_type": error_type, "retry_after_ms": round(retry_after_s * 1000), "discard": True}
        self._tell(told.status("", self.entry.task_id, Status.PROCESSING, attempt=self.attempt, **more))

    def ended(self, entry: Entry) -> None:
        """It is over, as the journal has it now."""
        self._flush()
        self.entry = entry
        state = state_of(entry, self)
        match state["status"]:
            case Status.COMPLETED:
                self._tell(told.result("", state))
            case Status.FAILED:
                self._tell(told.error("", state))
            case Status.CANCELLED:
                self._tell(told.status("", entry.task_id, Status.CANCELLED))
            case _:
                # Its worker goes on with it: whoever follows asks there.
                self.over = True
                self._ring()

    @property
    def partial(self) -> str:
        """What the answer is so far."""
        return "".join(self._said[Kind.ANSWER])

    async def wait(self) -> None:
        """Wait for more."""
        await self._bell.wait()

    def _flush(self) -> None:
        if self._open:
            text, self._open = "".join(self._open), []
            self._tell(told.token("", self.attempt, self._open_kind, text))

    def _tell(self, event: Told) -> None:
        number = len(self.events)
        self.events.append(event._replace(id=f"journal-{self.entry.starts}-{number}"))
        self.over = self.over or event.final
        self._ring()

    def _ring(self) -> None:
        self._bell.set()
        self._bell = asyncio.Event()


def state_of(entry: Entry, live: Live | None) -> dict[str, Any]:
    """A journaled task as `GET` shows it."""
    submit, outcome = entry.submit, entry.outcome
    running = entry.state is State.RUNNING and live is not None
    status = {
        State.WAITING: Status.PENDING,
        State.RUNNING: Status.PROCESSING,
        State.CANCELLED: Status.CANCELLED,
        State.ENDED: Status.PENDING if outcome is None else outcome.status,
    }[entry.state]
    usage = Usage() if outcome is None else outcome.usage
    error_type = outcome.error_type if outcome is not None else None
    return {
        "task_id": entry.task_id,
        "status": status,
        "task_type": submit.task_type,
        "user": submit.user,
        "language": submit.language,
        "model": outcome.model if outcome is not None else submit.model,
        "result": outcome.result if outcome is not None and status is Status.COMPLETED else None,
        "partial": None if status.final else live.partial if running and live is not None else "",
        "attempts": outcome.attempts if outcome is not None else (live.attempt if live is not None else entry.starts),
        "error": {"type": error_type, "message": outcome.error} if outcome is not None and error_type else None,
        "submitted_ms": submit.submitted_ms,
        "accepted_ms": entry.taken_ms,
        "updated_ms": outcome.finished_ms if outcome is not None else entry.taken_ms,
        "usage": {
            "prompt_tokens": usage.prompt_tokens,
            "completion_tokens": usage.completion_tokens,
            "total_tokens": usage.prompt_tokens + usage.completion_tokens,
        },
    }
