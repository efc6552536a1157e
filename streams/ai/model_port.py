"""What the stream asks of a model and of the prompts; `streams.ai.model` and `streams.ai.prompts` give it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple, Protocol

from topics.ai import Kind, Usage


class Message(NamedTuple):
    """One message of a chat: `role` is system, user or assistant."""

    role: str
    content: str


@dataclass(frozen=True, kw_only=True)
class ModelCall:
    """One call. `deadline_s` is all the time there is, the whole of the answer included; `name` is for logs."""

    model: str
    messages: tuple[Message, ...]
    deadline_s: float
    name: str = ""


class Delta(NamedTuple):
    """A piece of text as it comes."""

    kind: Kind
    text: str


class ModelRetryable(Exception):
    """The call failed in a way that may pass: 429, 5xx, a broken stream, no answer in time.

    `error_type` is a label (`rate_limited`, `server_error`, `connection`, `broken_stream`, `timeout`, ...); `retry_after_s`
    what the server asked for; `began` whether text had come already.
    """

    def __init__(self, error_type: str, message: str, retry_after_s: float | None = None, began: bool = False) -> None:
        super().__init__(message)
        self.error_type = error_type
        self.retry_after_s = retry_after_s
        self.began = began


class ModelRefused(Exception):
    """The call can never succeed: 4xx. `error_type` is a label (`bad_request`, `unauthorized`, `not_found`, ...)."""

    def __init__(self, error_type: str, message: str) -> None:
        super().__init__(message)
        self.error_type = error_type


class Model(Protocol):
    """A model behind an endpoint; made in compose, shared by all partitions of a worker and by gateways."""

    def stream(self, call: ModelCall) -> AsyncIterator[Delta | Usage]:
        """The answer as it comes, and at last its usage (left out when the endpoint tells none).

        Whether the endpoint streams is the model's own concern: a plain answer is one delta. Raises ModelRetryable and
        ModelRefused; closing the iterator ends the call.
        """


class Part(StrEnum):
    """Which of a task's calls it is: the only one, one of a segment, or the one that merges the segments' answers."""

    WHOLE = "whole"
    SEGMENT = "segment"
    MERGE = "merge"


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What a call is to be about. `texts` is the question, the segment, or for a merge the question's beginning and then
    the answers in the order of the segments; `number` counts segments from 1 `of` all."""

    task_type: str
    language: str
    part: Part
    texts: tuple[str, ...]
    number: int = 1
    of: int = 1


@dataclass(frozen=True)
class TaskType:
    """What a task type selects: its template's version, and the model unless the task names one."""

    template: str
    model: str


class Prompts(Protocol):
    """The versioned templates. Pure: the same question gives the same messages."""

    @property
    def task_types(self) -> Mapping[str, TaskType]:
        """All task types there are; others are refused."""

    def messages(self, asked: Asked) -> tuple[Message, ...]:
        """The messages of one call. `asked.task_type` is one of `task_types`."""


class WebhookRefused(Exception):
    """The webhook will never take it: an address that is not allowed, or an answer that says so."""


class Webhooks(Protocol):
    """Sends the news of a finished task to where its submitter wants it."""

    async def send(self, url: str, body: bytes, task_id: str) -> None:
        """One attempt, signed. Raises WebhookRefused for what no attempt cures, OSError or TimeoutError for the rest."""
