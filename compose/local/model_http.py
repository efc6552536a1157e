"""The chat-completions protocol, as OpenAI's clients speak it, over answers that nobody has thought about."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import re
import time
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import msgspec
import orjson
from aiohttp import web

from compose.local.model_faults import Behaviour, Called, Fault, Rule, Script

MAX_BODY_BYTES = 8 << 20
#: Tokens that come within so short a time come in one event.
EVENT_MS = 20

#: Statuses that a fault is answered with, and the error's `type`.
_STATUSES = {
    Fault.S400: (400, "invalid_request_error"),
    Fault.S401: (401, "authentication_error"),
    Fault.S429: (429, "rate_limit_error"),
    Fault.S500: (500, "server_error"),
    Fault.S503: (503, "server_error"),
}
_BEFORE_FIRST = {Fault.BROKEN_FIRST, Fault.CUT_FIRST}


class _Message(msgspec.Struct):
    role: str
    content: str


class _StreamOptions(msgspec.Struct):
    include_usage: bool = False


class _Request(msgspec.Struct):
    """The fields that are read; any others are taken and change nothing."""

    model: str
    messages: list[_Message]
    stream: bool = False
    stream_options: _StreamOptions | None = None


def stand_in_answer(text: str) -> str:
    """The answer to a last message: always the same, and of no other."""
    digest = hashlib.sha256(text.encode("utf-8", "replace")).hexdigest()[:16]
    begins = " ".join(text.split())[:60]
    return (
        "This is Sluiceway's stand-in model, which understands nothing of what it is asked. "
        f"The text has {len(text)} characters, the SHA-256 {digest}, and begins with: {begins}"
    )


def stand_in_reasoning(text: str) -> str:
    """What it thinks aloud before, as the models named `-reasoning`."""
    return f"A stand-in does not think. It has counted {len(text)} characters."


def application(key: str = "") -> web.Application:
    """The server. With a key, requests to the model without it are refused."""
    model = _Model(key)
    app = web.Application(client_max_size=MAX_BODY_BYTES)
    app.add_routes(
        [
            web.get("/v1/models", model.models),
            web.post("/v1/chat/completions", model.complete),
            web.put("/stand-in/rules", model.set_rules),
            web.get("/stand-in/calls", model.calls),
            web.delete("/stand-in/calls", model.forget),
        ]
    )
    return app


class _Model:
    def __init__(self, key: str) -> None:
        self._key = key
        self._script = Script()

    # -- what tests and demos ask --------------------------------------------------------------------------------

    async def set_rules(self, request: web.Request) -> web.Response:
        """Replace the rules by a JSON array of them; an empty one takes all away."""
        try:
            self._script.set(msgspec.json.decode(await request.read(), type=list[Rule]))
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            return web.Response(status=400, text=f"{error}\n")
        return web.Response(status=204)

    async def calls(self, request: web.Request) -> web.Response:
        """The counts by `task/call`."""
        return _json(msgspec.to_builtins(dict(self._script.calls)))

    async def forget(self, request: web.Request) -> web.Response:
        """Count from nothing."""
        self._script.calls.clear()
        return web.Response(status=204)

    # -- the protocol --------------------------------------------------------------------------------------------

    async def models(self, request: web.Request) -> web.Response:
        """The one name that does nothing wrong."""
        if not self._allowed(request):
            return _error(401, "authentication_error", "the key is not right")
        return _json({"object": "list", "data": [{"id": "stand-in", "object": "model", "owned_by": "sluiceway"}]})

    async def complete(self, request: web.Request) -> web.StreamResponse:
        """One answer, streamed if that is asked for."""
        name = request.headers.get("X-Client-Request-Id", "")
        called = self._script.called(name)
        called.requests += 1
        if not self._allowed(request):
            return _error(401, "authentication_error", "the key is not right")
        try:
            asked = msgspec.json.decode(await request.read(), type=_Request)
            text = asked.messages[-1].content
        except (msgspec.DecodeError, UnicodeDecodeError, IndexError) as error:
            return _error(400, "invalid_request_error", f"the request is not as it must be: {error}")
        behaviour = self._script.decide(name, asked.model)
        if behaviour is None:
            return _error(404, "invalid_request_error", f"this is a stand-in, and has no model {asked.model}")
        return await _Answer(request, asked, text, behaviour, called).give()

    def _allowed(self, request: web.Request) -> bool:
        given = request.headers.get("Authorization", "").removeprefix("Bearer ")
        return not self._key or hmac.compare_digest(given.encode(), self._key.encode())


class _Answer:
    """One request's answer, right or wrong as the behaviour has it."""

    def __init__(self, request: web.Request, asked: _Request, text: str, behaviour: Behaviour, called: Called) -> None:
        self._http = request
        self._asked = asked
        self._behaviour = behaviour
        self._called = called
        self._reasoning = stand_in_reasoning(text) if behaviour.reasons else ""
        self._answer = stand_in_answer(text)
        self._began = asyncio.get_running_loop().time()
        prompt = sum(len(message.content) for message in asked.messages) // 4 + 1
        completion = len(_tokens(self._reasoning)) + len(_tokens(self._answer))
        self._usage = {
            "prompt_tokens": prompt,
            "completion_tokens": completion,
            "total_tokens": prompt + completion,
        }

    async def give(self) -> web.StreamResponse:
        """The response, sent as far as it goes."""
        fault = self._behaviour.fault
        if fault is not None and not (fault in (Fault.PLAIN, Fault.UNSTREAMED) and not self._asked.stream):
            self._called.faults[fault] += 1
        if fault in _STATUSES:
            return self._refusal(*_STATUSES[fault])
        if fault is Fault.HANG:
            await asyncio.Event().wait()
        if fault is Fault.PLAIN and self._asked.stream:
            return _error(400, "invalid_request_error", "this model does not stream")
        if self._asked.stream and fault is not Fault.UNSTREAMED:
            self._called.streamed += 1
            with suppress(ConnectionError):
                return await self._stream()
            return web.Response(status=499)
        return await self._whole()

    def _refusal(self, status: int, kind: str) -> web.Response:
        answer = _error(status, kind, f"the stand-in was told to answer {status}")
        if self._behaviour.retry_after_s is not None:
            answer.headers["Retry-After"] = f"{self._behaviour.retry_after_s:g}"
        return answer

    async def _whole(self) -> web.Response:
        await self._until(self._behaviour.answer_ms)
        if self._behaviour.fault is Fault.STALL:
            await asyncio.Event().wait()
        if self._behaviour.fault in (Fault.CUT, Fault.CUT_FIRST):
            self._cut()
        if self._behaviour.fault in (Fault.BROKEN, Fault.BROKEN_FIRST):
            return web.Response(body=b'{"id": "chatcmpl-1", "cho', content_type="application/json")
        message = {"role": "assistant", "content": self._answer}
        if self._reasoning:
            message["reasoning_content"] = self._reasoning
        choice = {"index": 0, "message": message, "finish_reason": "stop"}
        self._called.answered += 1
        return _json({**self._head("chat.completion"), "choices": [choice], "usage": self._usage})

    async def _stream(self) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream", "Cache-Control": "no-cache"})
        await response.prepare(self._http)
        pieces = [("reasoning_content", token) for token in _tokens(self._reasoning)]
        pieces += [("content", token) for token in _tokens(self._answer)]
        events = _events(pieces, max(1, self._behaviour.answer_ms // EVENT_MS))
        wrong_at = 0 if self._behaviour.fault in _BEFORE_FIRST else len(events) // 2
        for number, event in enumerate(events):
            if number == wrong_at and not await self._goes_on(response):
                return response
            await self._until(self._behaviour.answer_ms * (number + 1) // len(events))
            for kind, text in event:
                await self._say(response, {kind: _clock() if self._behaviour.clock else text})
        await self._say(response, {}, "stop")
        if self._asked.stream_options and self._asked.stream_options.include_usage:
            await _send(response, {**self._head("chat.completion.chunk"), "choices": [], "usage": self._usage})
        await response.write(b"data: [DONE]\n\n")
        await response.write_eof()
        self._called.answered += 1
        return response

    async def _goes_on(self, response: web.StreamResponse) -> bool:
        """Do what is to go wrong now; whether the stream goes on after it."""
        match self._behaviour.fault:
            case Fault.STALL:
                await asyncio.Event().wait()
            case Fault.BROKEN | Fault.BROKEN_FIRST:
                await response.write(b'data: {"id": "chatcmpl-1", "cho\n\n')
            case Fault.CUT | Fault.CUT_FIRST:
                self._cut()
                return False
            case Fault.TOLD:
                await _send(response, {"error": {"message": "the stand-in was told to fail", "type": "server_error"}})
                return False
            case Fault.ENDED:
                await response.write(b"data: [DONE]\n\n")
                return False
        return True

    def _cut(self) -> None:
        if self._http.transport is not None:
            self._http.transport.abort()

    async def _until(self, after_ms: int) -> None:
        """Wait until so long after the request came."""
        left_s = self._began + after_ms / 1000 - asyncio.get_running_loop().time()
        if left_s > 0:
            await asyncio.sleep(left_s)

    async def _say(self, response: web.StreamResponse, delta: dict[str, str], finish: str | None = None) -> None:
        choice = {"index": 0, "delta": delta, "finish_reason": finish}
        await _send(response, {**self._head("chat.completion.chunk"), "choices": [choice]})

    def _head(self, kind: str) -> dict[str, Any]:
        return {"id": "chatcmpl-stand-in", "object": kind, "created": int(time.time()), "model": self._asked.model}


def _clock() -> str:
    return f"{time.time_ns() // 1000} "


def _tokens(text: str) -> list[str]:
    return re.findall(r"\S+\s*", text)


def _events(pieces: Sequence[tuple[str, str]], most: int) -> list[list[tuple[str, str]]]:
    """The pieces in at most so many groups, of even size."""
    size = -(-len(pieces) // most)
    return [list(pieces[at : at + size]) for at in range(0, len(pieces), size)]


async def _send(response: web.StreamResponse, event: dict[str, Any]) -> None:
    await response.write(b"data: " + orjson.dumps(event) + b"\n\n")


def _json(value: Any, status: int = 200) -> web.Response:
    return web.Response(status=status, body=orjson.dumps(value), content_type="application/json")


def _error(status: int, kind: str, message: str) -> web.Response:
    return _json({"error": {"message": message, "type": kind, "param": None, "code": None}}, status)
