"""What an endpoint of chat completions says, in checked types, and what its errors mean for a task."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from email.utils import parsedate_to_datetime
from typing import Any

import msgspec

from streams.ai.model_port import Delta, ModelRefused, ModelRetryable
from topics.ai import Kind, Usage

#: A pause that a server asks for is not longer than so much, seconds.
RETRY_AFTER_MAX_S = 3_600.0
_ERROR_CHARS = 500
_TOKENS_MAX = 1 << 40

#: Statuses that pass, with the error's label; so do all from 500 on.
_RETRYABLE = {408: "timeout", 409: "conflict", 425: "too_early", 429: "rate_limited"}
_REFUSED = {
    400: "bad_request",
    401: "unauthorized",
    403: "forbidden",
    404: "not_found",
    413: "too_large",
    422: "bad_request",
}


class Text(msgspec.Struct, frozen=True):
    """A delta, or a whole message. `reasoning_content` is what DeepSeek's models think aloud."""

    content: str | None = None
    reasoning_content: str | None = None

    def deltas(self) -> Iterator[Delta]:
        """Its pieces of text."""
        if self.reasoning_content:
            yield Delta(Kind.REASONING, self.reasoning_content)
        if self.content:
            yield Delta(Kind.ANSWER, self.content)


class Tokens(msgspec.Struct, frozen=True):
    """Usage as an endpoint tells it."""

    prompt_tokens: int | None = None
    completion_tokens: int | None = None

    def usage(self) -> Usage:
        """The same in numbers that a record takes."""
        counts = (min(max(count or 0, 0), _TOKENS_MAX) for count in (self.prompt_tokens, self.completion_tokens))
        return Usage(*counts)


class Choice(msgspec.Struct, frozen=True):
    """The first one is the answer: no other is asked for."""

    delta: Text | None = None
    message: Text | None = None
    finish_reason: str | None = None


class Reply(msgspec.Struct, frozen=True):
    """A chunk of a stream, or a whole completion."""

    choices: list[Choice] = []
    usage: Tokens | None = None

    @property
    def choice(self) -> Choice:
        """The answer's, or an empty one: the chunk that tells the usage has none."""
        return self.choices[0] if self.choices else Choice()

    @property
    def text(self) -> Text:
        """What it says."""
        return self.choice.delta or self.choice.message or Text()


class _Event(Reply, frozen=True):
    """A chunk of a stream, or an error that happened in the midst of it."""

    error: Any = None


_decoder = msgspec.json.Decoder(_Event)


def decode_event(data: bytes) -> Reply:
    """A stream's event. Raises ValueError for one that is no chunk, and for an error that it tells."""
    try:
        event = _decoder.decode(data)
    except msgspec.DecodeError:
        # One decoder takes no half of a surrogate pair, which some endpoints send one by one.
        event = msgspec.convert(json.loads(data), _Event)
    if event.error:
        raise ValueError(f"it tells an error: {said({'error': event.error})}")
    return event


def check_finish(reason: str | None) -> None:
    """Raise ModelRefused for an end that no other attempt makes better."""
    if reason == "content_filter":
        raise ModelRefused("content_filter", "the endpoint withheld the answer (finish_reason content_filter)")


def status_error(status: int, headers: Any, text: str) -> ModelRetryable | ModelRefused:
    """What a status of 400 or more means; `text` is what the endpoint says about it."""
    message = f"the endpoint answered {status}: {text}"
    if status in _RETRYABLE or status >= 500:
        return ModelRetryable(_RETRYABLE.get(status, "server_error"), message, retry_after_s(headers))
    return ModelRefused(_REFUSED.get(status, "refused"), message)


def said(body: object) -> str:
    """The message of an error's body, decoded JSON or text, shortened."""
    if isinstance(body, dict):
        inner = body.get("error", body)
        body = inner.get("message", inner) if isinstance(inner, dict) else inner
    return " ".join(str(body or "nothing more").split())[:_ERROR_CHARS]


def retry_after_s(headers: Any) -> float | None:
    """The pause that a server asks for (RFC 9110, 10.2.3), seconds; a date is taken against the server's own."""
    value = headers.get("retry-after")
    if value is None:
        return None
    try:
        asked_s = float(value)
    except ValueError:
        try:
            asked_s = (parsedate_to_datetime(value) - parsedate_to_datetime(headers.get("date"))).total_seconds()
        except (TypeError, ValueError):
            return None
    return min(max(asked_s, 0.0), RETRY_AFTER_MAX_S) if math.isfinite(asked_s) else None
