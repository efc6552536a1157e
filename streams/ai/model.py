"""A model behind an endpoint that speaks OpenAI's chat completions, by the `openai` client.

Every call asks for a stream. Whether the endpoint streams a model is found out by the first of them and remembered: its
answer is `text/event-stream`, or a whole answer, or a refusal, after which a plain call is made at once. So it is when a
stream breaks before its first token. After it the call has failed, and whoever asked begins a new attempt. A stream that ends
without a finish_reason is broken, too: its text would pass for an answer.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import msgspec
import structlog

from streams.ai.model_port import Delta, ModelCall, ModelRefused, ModelRetryable
from streams.ai.model_replies import Reply, check_finish, decode_event, said, status_error
from streams.ai.sse import EventDecoder
from topics.ai import Usage

if TYPE_CHECKING:
    from httpx2 import Response
    from openai import AsyncOpenAI
    from openai._legacy_response import LegacyAPIResponse

log = structlog.get_logger(__name__)

#: To a request for a stream these may mean that there is none.
_NO_STREAM = {400, 405, 406, 415, 422, 501}
#: Calls wait so long for another one to find out whether the endpoint streams.
_PROBE_WAIT_S = 5.0
#: After the finish_reason only usage and the end come; an answer is not held up for them longer.
_TAIL_S = 5.0
#: And a connection is not waited for longer to be free.
_DRAIN_S = 0.1


@dataclass(frozen=True, kw_only=True)
class Endpoint:
    """Where the models are. That one does not stream is asked again after `probe_again_s`."""

    base_url: str
    key: str = field(default="", repr=False)
    probe_again_s: float = 600.0
    connect_s: float = 10.0


class _NoStream(Exception):
    """There is no stream: it was refused, or broke before its first token."""


@dataclass
class _Streaming:
    """What is known of one model: None is nothing yet."""

    streams: bool | None = None
    until_s: float = 0.0
    probing: asyncio.Lock = field(default_factory=asyncio.Lock)

    def settled(self) -> bool:
        return self.streams is True or (self.streams is False and asyncio.get_running_loop().time() < self.until_s)


class OpenAIModel:
    """Implements `streams.ai.model_port.Model`. Nothing is retried here."""

    def __init__(self, endpoint: Endpoint) -> None:
        self._endpoint = endpoint
        self._making: asyncio.Task[AsyncOpenAI] | None = None
        self._known: dict[str, _Streaming] = {}

    def streams(self, model: str) -> bool | None:
        """Whether a model's answers come as streams; None until a call has found out."""
        return self._known[model].streams if model in self._known else None

    async def close(self) -> None:
        """Close the connections."""
        if self._making is not None:
            await (await self._making).close()

    async def stream(self, call: ModelCall) -> AsyncGenerator[Delta | Usage]:
        """See `Model`."""
        ends_s = asyncio.get_running_loop().time() + call.deadline_s
        known = self._known.setdefault(call.model, _Streaming())
        try:
            async with aclosing(self._streamed(call, ends_s)) as pieces:
                async for piece in pieces:
                    yield piece
            return
        except _NoStream:
            pass
        try:
            whole = await self._whole(call, ends_s)
        except ModelRefused:
            if known.streams is False:
                # It may have been the request that was refused, and not the stream.
                known.streams = None
            raise
        for piece in whole:
            yield piece

    # -- streamed ------------------------------------------------------------------------------------------------

    async def _streamed(self, call: ModelCall, ends_s: float) -> AsyncGenerator[Delta | Usage]:
        """The answer as it comes. Raises _NoStream while nothing has come."""
        response = await self._open(call, ends_s)
        began, usage = False, Usage()
        try:
            if not _is_stream(response):
                for piece in await self._read(response, ends_s):
                    yield piece
                return
            async with aclosing(_replies(response.http_response, ends_s)) as replies:
                async for reply in replies:
                    for delta in reply.text.deltas():
                        began = True
                        yield delta
                    usage = reply.usage.usage() if reply.usage else usage
            yield usage
        except _Broken as broken:
            error = self._clean(str(broken))
            if began:
                raise ModelRetryable("broken_stream", error, began=True) from None
            log.info("model_stream_broke_early", model=call.model, error=error)
            raise _NoStream from None
        except TimeoutError:
            raise _no_time(began) from None
        finally:
            await response.http_response.aclose()

    async def _open(self, call: ModelCall, ends_s: float) -> LegacyAPIResponse[Any]:
        """The response to a request for a stream. Of several calls that would find out whether there is one, one does."""
        known = self._known[call.model]
        if not known.settled() and await _acquired(known.probing):
            try:
                if not known.settled():
                    return await self._probe(call, ends_s, known)
            finally:
                known.probing.release()
        if known.settled() and not known.streams:
            raise _NoStream
        return await self._probe(call, ends_s, known)

    async def _probe(self, call: ModelCall, ends_s: float, known: _Streaming) -> LegacyAPIResponse[Any]:
        """Ask for a stream, and remember what comes of it."""
        try:
            response = await self._ask(call, ends_s, stream=True, stream_options={"include_usage": True})
        except _Status as refused:
            if refused.status not in _NO_STREAM:
                raise refused.meaning from None
            self._remember(call.model, known, False)
            raise _NoStream from None
        self._remember(call.model, known, _is_stream(response))
        return response

    def _remember(self, model: str, known: _Streaming, streams: bool) -> None:
        if known.streams is not streams:
            log.info("model_streams" if streams else "model_does_not_stream", model=model)
        known.streams = streams
        known.until_s = asyncio.get_running_loop().time() + self._endpoint.probe_again_s

    # -- whole ---------------------------------------------------------------------------------------------------

    async def _whole(self, call: ModelCall, ends_s: float) -> list[Delta | Usage]:
        """The answer to a plain call."""
        try:
            response = await self._ask(call, ends_s, stream=False)
        except _Status as refused:
            raise refused.meaning from None
        return await self._read(response, ends_s)

    async def _read(self, response: LegacyAPIResponse[Any], ends_s: float) -> list[Delta | Usage]:
        """A whole answer's pieces."""
        from httpx2 import HTTPError

        try:
            async with asyncio.timeout_at(ends_s):
                body = await response.http_response.aread()
            reply = msgspec.json.decode(body, type=Reply)
        except TimeoutError:
            raise _no_time(False) from None
        except HTTPError as error:
            raise ModelRetryable("connection", self._clean(f"the answer broke off: {error!r}")) from None
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise ModelRetryable("bad_answer", self._clean(f"the answer is no chat completion: {error}")) from None
        check_finish(reply.choice.finish_reason)
        return [*reply.text.deltas(), reply.usage.usage() if reply.usage else Usage()]

    # -- requests ------------------------------------------------------------------------------------------------

    async def _ask(self, call: ModelCall, ends_s: float, **how: Any) -> LegacyAPIResponse[Any]:
        """Send a request; its response once the status is there, or for a plain call all of it."""
        from openai import APIConnectionError, APIStatusError

        client = await self._client()
        messages: Any = [{"role": message.role, "content": message.content} for message in call.messages]
        headers = {"X-Client-Request-Id": call.name} if call.name else {}
        try:
            async with asyncio.timeout_at(ends_s):
                response: LegacyAPIResponse[Any] = await client.chat.completions.with_raw_response.create(
                    model=call.model, messages=messages, extra_headers=headers, **how
                )
                return response
        except TimeoutError:
            raise _no_time(False) from None
        except APIStatusError as error:
            meaning = status_error(error.status_code, error.response.headers, self._clean(said(error.body)))
            raise _Status(error.status_code, meaning) from None
        except APIConnectionError as error:
            raise ModelRetryable("connection", self._clean(f"no answer: {error.__cause__ or error!r}")) from None

    async def _client(self) -> AsyncOpenAI:
        """The client, made beside the event loop: to import the library takes seconds."""
        if self._making is None:
            self._making = asyncio.create_task(asyncio.to_thread(_make, self._endpoint))
        return await asyncio.shield(self._making)

    def _clean(self, text: str) -> str:
        """Without the key, which an endpoint may repeat in what it says."""
        return text.replace(self._endpoint.key, "***") if self._endpoint.key else text


class _Status(Exception):
    """The endpoint answered with an error."""

    def __init__(self, status: int, meaning: ModelRetryable | ModelRefused) -> None:
        super().__init__(str(meaning))
        self.status = status
        self.meaning = meaning


class _Broken(Exception):
    """A stream that is no answer."""


async def _replies(response: Response, ends_s: float) -> AsyncGenerator[Reply]:
    """The chunks of a stream, up to its end. Raises _Broken, and TimeoutError past `ends_s`."""
    finished, pieces = False, response.aiter_bytes()
    events = _events(pieces)
    while True:
        try:
            async with asyncio.timeout_at(ends_s):
                event = await anext(events)
            reply = decode_event(event)
        except StopAsyncIteration:
            break
        except Exception as error:
            # Whatever the library stumbles over, an error that the stream tells among it; a finished answer is one.
            if finished:
                return
            if isinstance(error, TimeoutError):
                raise
            raise _Broken(f"the stream broke: {error.__cause__ or error!r}") from error
        yield reply
        if reason := reply.choice.finish_reason:
            check_finish(reason)
            finished = True
            ends_s = min(ends_s, asyncio.get_running_loop().time() + _TAIL_S)
    if not finished:
        raise _Broken("the stream ended without a finish_reason")
    # A connection whose response was read to its end serves the next call.
    with suppress(Exception):
        async with asyncio.timeout(_DRAIN_S):
            async for _ in pieces:
                pass


async def _events(pieces: AsyncIterator[bytes]) -> AsyncGenerator[bytes]:
    """The data of a stream's events before `[DONE]`. The library would make objects of its own of every one, which costs more
    than all else that a call does."""
    decoder = EventDecoder()
    async for piece in pieces:
        for data in decoder.feed(piece):
            if data.startswith(b"[DONE]"):
                return
            yield data


async def _acquired(lock: asyncio.Lock) -> bool:
    """Whether the lock could be had within the wait for another call's probe."""
    try:
        async with asyncio.timeout(_PROBE_WAIT_S):
            return await lock.acquire()
    except TimeoutError:
        return False


def _is_stream(response: LegacyAPIResponse[Any]) -> bool:
    kind: str = response.headers.get("content-type", "")
    return kind.partition(";")[0].strip().lower() == "text/event-stream"


def _no_time(began: bool) -> ModelRetryable:
    return ModelRetryable("deadline_exceeded", "no whole answer came within the time that was left", began=began)


def _make(endpoint: Endpoint) -> AsyncOpenAI:
    from httpx2 import Timeout
    from openai import AsyncOpenAI

    client = AsyncOpenAI(
        # Never none at all, which would have the library look into the environment.
        api_key=endpoint.key or "none",
        base_url=endpoint.base_url,
        max_retries=0,
        timeout=Timeout(None, connect=endpoint.connect_s),
    )
    # These came from the environment, and are of another endpoint's account.
    client.organization = client.project = None
    # What the first call would import.
    assert client.chat.completions
    return client
