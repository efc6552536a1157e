"""What the fold asks of the world, as values. What a call is about is read from the fold when it begins."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class CallModel:
    """Make a call. `left_ms` is what is left of the task's deadline; `failures` how many of the attempts before it failed,
    those not among them whose owner died."""

    task_id: str
    call: int
    model: str
    term: int
    attempt: int
    left_ms: int
    failures: int


@dataclass(frozen=True)
class Abandon:
    """End the calls of a task that are under way, or one of them: nobody wants their answers."""

    task_id: str
    call: int | None = None


@dataclass(frozen=True)
class SendWebhook:
    """Tell a task's webhook how it ended."""

    task_id: str


@dataclass(frozen=True)
class Wake:
    """Say so, with an idle record, when so much time has passed; a later wish replaces it."""

    after_ms: int


Effect = CallModel | Abandon | SendWebhook | Wake
