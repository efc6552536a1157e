"""The model client against the stand-in and against endpoints with odd habits; the stand-in against OpenAI's own client."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing, asynccontextmanager

import openai
import pytest
import structlog

from compose.local.model import ModelServer
from compose.local.model_http import stand_in_answer, stand_in_reasoning
from compose.local.process import free_port
from streams.ai.model import Endpoint, OpenAIModel
from streams.ai.model_port import Delta, Message, ModelCall, ModelRefused, ModelRetryable
from streams.ai.model_replies import retry_after_s
from tests.modelserver import calls, forget_calls, model_server, set_rules
from topics.ai import Kind, Usage

KEY = "sk-known-to-nobody"
QUESTION = "为什么 the sky is blue?"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ModelServer]:
    with model_server(tmp_path_factory.mktemp("model"), KEY) as started:
        yield started


@pytest.fixture
async def model(server: ModelServer) -> AsyncIterator[OpenAIModel]:
    set_rules(server)
    made = OpenAIModel(Endpoint(base_url=server.url, key=KEY))
    yield made
    await made.close()


def _call(
    model: str = "stand-in-40ms", deadline_s: float = 10.0, name: str = "", question: str = QUESTION
) -> ModelCall:
    messages = (Message("system", "Answer."), Message("user", question))
    return ModelCall(model=model, messages=messages, deadline_s=deadline_s, name=name)


async def _read(model: OpenAIModel, call: ModelCall) -> tuple[str, str, Usage, int]:
    """Answer, reasoning, usage, and the number of deltas."""
    pieces = [piece async for piece in model.stream(call)]
    deltas = [piece for piece in pieces if isinstance(piece, Delta)]
    usages = [piece for piece in pieces if isinstance(piece, Usage)]
    assert usages == pieces[-1:], "one usage, at the end"
    texts = ["".join(d.text for d in deltas if d.kind is kind) for kind in (Kind.ANSWER, Kind.REASONING)]
    return texts[0], texts[1], usages[0], len(deltas)


# -- the stand-in, by OpenAI's own client -----------------------------------------------------------------------------


def test_openai_s_client_is_served(server: ModelServer) -> None:
    set_rules(server)
    with openai.OpenAI(api_key=KEY, base_url=server.url, max_retries=0) as client:
        assert [model.id for model in client.models.list()] == ["stand-in"]
        messages: list[openai.types.chat.ChatCompletionMessageParam] = [{"role": "user", "content": QUESTION}]
        whole = client.chat.completions.create(model="stand-in-40ms", messages=messages)
        assert whole.choices[0].message.content == stand_in_answer(QUESTION)
        assert whole.usage is not None and whole.usage.total_tokens > 20
        chunks = list(
            client.chat.completions.create(
                model="stand-in-40ms", messages=messages, stream=True, stream_options={"include_usage": True}
            )
        )
        texts = [choice.delta.content or "" for chunk in chunks for choice in chunk.choices]
        assert "".join(texts) == stand_in_answer(QUESTION) and len(texts) > 20
        assert chunks[-1].usage == whole.usage
        with pytest.raises(openai.RateLimitError):
            client.chat.completions.create(model="stand-in-429", messages=messages)
    other = openai.OpenAI(api_key="another", base_url=server.url, max_retries=0)
    with other, pytest.raises(openai.AuthenticationError):
        other.models.list()


def test_an_answer_is_of_its_question_and_says_what_it_is() -> None:
    assert stand_in_answer("a") != stand_in_answer("b")
    assert "stand-in" in stand_in_answer("a")


# -- what goes well -----------------------------------------------------------------------------------------------------


async def test_an_answer_comes_token_by_token(model: OpenAIModel) -> None:
    assert model.streams("stand-in-40ms") is None
    answer, reasoning, usage, deltas = await _read(model, _call())
    assert (answer, reasoning) == (stand_in_answer(QUESTION), "")
    assert deltas > 20 and usage.prompt_tokens > 0 and usage.completion_tokens == deltas
    assert model.streams("stand-in-40ms") is True


@pytest.mark.parametrize("name", ["stand-in-reasoning-40ms", "stand-in-reasoning-plain-40ms"])
async def test_reasoning_is_kept_apart(model: OpenAIModel, name: str) -> None:
    answer, reasoning, _, _ = await _read(model, _call(name))
    assert (answer, reasoning) == (stand_in_answer(QUESTION), stand_in_reasoning(QUESTION))


# -- no stream ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("probe_again_s", "second_requests"), [(600.0, 1), (0.0, 2)])
async def test_a_refused_stream_becomes_a_plain_call_is_remembered_and_asked_for_again_later(
    server: ModelServer, probe_again_s: float, second_requests: int
) -> None:
    set_rules(server)
    forget_calls(server)
    model = OpenAIModel(Endpoint(base_url=server.url, key=KEY, probe_again_s=probe_again_s))
    for name in ("first", "second"):
        assert (await _read(model, _call("stand-in-plain-0ms", name=f"{name}/0/1")))[0] == stand_in_answer(QUESTION)
    assert model.streams("stand-in-plain-0ms") is False
    assert [calls(server)[f"{name}/0"]["requests"] for name in ("first", "second")] == [2, second_requests]
    await model.close()


async def test_a_whole_answer_to_a_streaming_request_is_taken_as_it_is(server: ModelServer, model: OpenAIModel) -> None:
    answer, _, usage, deltas = await _read(model, _call("stand-in-unstreamed-40ms", name="whole/0/1"))
    assert (answer, deltas) == (stand_in_answer(QUESTION), 1) and usage.completion_tokens > 20
    assert calls(server)["whole/0"]["requests"] == 1
    assert model.streams("stand-in-unstreamed-40ms") is False


async def test_of_many_first_calls_one_finds_out(server: ModelServer, model: OpenAIModel) -> None:
    many = [_read(model, _call("stand-in-plain-100ms", name=f"many-{n}/0/1")) for n in range(16)]
    assert {answer for answer, *_ in await asyncio.gather(*many)} == {stand_in_answer(QUESTION)}
    counted = [count for name, count in calls(server).items() if name.startswith("many-")]
    assert sum(count["faults"].get("plain", 0) for count in counted) == 1
    assert sum(count["requests"] for count in counted) == 17


async def test_a_request_that_is_refused_plainly_too_says_nothing_of_streams(model: OpenAIModel) -> None:
    with pytest.raises(ModelRefused) as refused:
        await _read(model, _call("stand-in-400"))
    assert refused.value.error_type == "bad_request"
    assert model.streams("stand-in-400") is None


@pytest.mark.parametrize("fault", ["broken_first", "cut_first"])
async def test_a_stream_that_breaks_before_its_first_token_becomes_a_plain_call(
    server: ModelServer, model: OpenAIModel, fault: str
) -> None:
    set_rules(server, {"fault": fault, "times": 1, "answer_ms": 40})
    assert (await _read(model, _call(name=f"{fault}/0/1")))[0] == stand_in_answer(QUESTION)
    assert (calls(server)[f"{fault}/0"]["requests"], calls(server)[f"{fault}/0"]["streamed"]) == (2, 1)
    assert (await _read(model, _call()))[3] > 20, "streams are still asked for"


# -- what goes wrong ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fault", ["broken", "cut", "told", "ended"])
async def test_a_stream_that_breaks_later_says_so(server: ModelServer, model: OpenAIModel, fault: str) -> None:
    said = []
    with pytest.raises(ModelRetryable) as failed:
        async for piece in model.stream(_call(f"stand-in-{fault}-40ms", name=f"late-{fault}/0/1")):
            said.append(piece)
    assert said and (failed.value.error_type, failed.value.began) == ("broken_stream", True)
    assert calls(server)[f"late-{fault}/0"]["requests"] == 1


@pytest.mark.parametrize(
    ("name", "began"), [("stand-in-hang", False), ("stand-in-stall-40ms", True), ("stand-in-20000ms", True)]
)
async def test_nothing_takes_longer_than_the_deadline(model: OpenAIModel, name: str, began: bool) -> None:
    await _read(model, _call())  # what the first call does once is done
    started = time.monotonic()
    with pytest.raises(ModelRetryable) as failed:
        await _read(model, _call(name, deadline_s=1.0))
    assert 0.8 < time.monotonic() - started < 2.0
    assert (failed.value.error_type, failed.value.began) == ("deadline_exceeded", began)


async def test_a_plain_call_has_what_the_refused_stream_has_left(server: ModelServer, model: OpenAIModel) -> None:
    await _read(model, _call())
    started = time.monotonic()
    with pytest.raises(ModelRetryable) as failed:
        await _read(model, _call("stand-in-plain-30000ms", deadline_s=0.7))
    assert failed.value.error_type == "deadline_exceeded" and time.monotonic() - started < 1.5


@pytest.mark.parametrize(
    ("fault", "error_type", "retry_after_s"),
    [("429", "rate_limited", 7.5), ("500", "server_error", None), ("503", "server_error", 3.0)],
)
async def test_what_may_pass(
    server: ModelServer, model: OpenAIModel, fault: str, error_type: str, retry_after_s: float | None
) -> None:
    set_rules(server, {"fault": fault, "retry_after_s": retry_after_s})
    with pytest.raises(ModelRetryable) as failed:
        await _read(model, _call(name=f"status-{fault}/0/1"))
    assert (failed.value.error_type, failed.value.retry_after_s) == (error_type, retry_after_s)
    assert f"answered {fault}: the stand-in was told to" in str(failed.value)
    assert calls(server)[f"status-{fault}/0"]["requests"] == 1, "whether to try again is not for the client to say"


@pytest.mark.parametrize(
    ("name", "error_type"), [("stand-in-401", "unauthorized"), ("gpt", "not_found"), ("stand-in-sings", "not_found")]
)
async def test_what_cannot_succeed(model: OpenAIModel, name: str, error_type: str) -> None:
    with pytest.raises(ModelRefused) as failed:
        await _read(model, _call(name))
    assert failed.value.error_type == error_type


async def test_an_endpoint_that_is_not_there() -> None:
    model = OpenAIModel(Endpoint(base_url=f"http://127.0.0.1:{free_port()}/v1"))
    with pytest.raises(ModelRetryable) as failed:
        await _read(model, _call())
    assert failed.value.error_type == "connection"
    await model.close()


@pytest.mark.parametrize(
    ("headers", "pause_s"),
    [
        ({"retry-after": "2.5"}, 2.5),
        ({"retry-after": "-1"}, 0.0),
        ({"retry-after": "9999999"}, 3600.0),
        ({"retry-after": "nan"}, None),
        ({"retry-after": "soon"}, None),
        ({}, None),
        ({"retry-after": "Wed, 25 Nov 2026 12:00:30 GMT", "date": "Wed, 25 Nov 2026 12:00:00 GMT"}, 30.0),
        ({"retry-after": "Wed, 25 Nov 2026 12:00:30 GMT"}, None),
    ],
)
def test_retry_after(headers: dict[str, str], pause_s: float | None) -> None:
    assert retry_after_s(headers) == pause_s


# -- endpoints with habits of their own -----------------------------------------------------------------------------------

_STREAM = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream; charset=utf-8\r\nConnection: close\r\n\r\n"


@asynccontextmanager
async def _endpoint(*parts: bytes, stays: bool = False) -> AsyncIterator[tuple[str, list[bytes], asyncio.Event]]:
    """An endpoint that answers every request with these bytes, with a moment between; its URL, the requests that came, and
    whether a client has left."""
    requests: list[bytes] = []
    left = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        size = int(head.lower().partition(b"content-length:")[2].split()[0])
        requests.append(head + await reader.readexactly(size))
        for part in parts:
            writer.write(part)
            await writer.drain()
            await asyncio.sleep(0.01)
        if stays:
            await reader.read()
            left.set()
        writer.close()

    listening = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{listening.sockets[0].getsockname()[1]}/v1", requests, left
    finally:
        listening.close()


def _event(delta: object, finish: str | None = None, **more: object) -> bytes:
    choices = [{"index": 0, "delta": delta, "finish_reason": finish}]
    event = {"id": "1", "object": "chat.completion.chunk", "choices": choices, **more}
    return f"data: {json.dumps(event, ensure_ascii=False)}\n\n".encode()


_END = _event({"role": "assistant"}, "stop") + b"data: [DONE]\n\n"


async def test_a_stream_may_come_in_any_pieces_with_comments_nulls_and_usage_in_every_chunk() -> None:
    word = _event({"content": "天空😀", "reasoning_content": None, "tool_calls": None}, usage={"prompt_tokens": 3})
    parts = [
        _STREAM,
        b": PROCESSING\r\n\r\n",
        b'data: {"choices": [], "usage": null}\r\n\r\n',
        word[:70],
        word[70:],
        _END,
    ]
    async with _endpoint(*parts) as (url, _, _):
        model = OpenAIModel(Endpoint(base_url=url))
        assert (await _read(model, _call()))[:3] == ("天空😀", "", Usage(3, 0))
        await model.close()


async def test_a_finished_answer_is_not_held_up_by_an_endpoint_that_does_not_end() -> None:
    async with _endpoint(_STREAM, _event({"content": "all"}), _event({}, "stop"), b"data: {oops\n\n") as (url, _, _):
        model = OpenAIModel(Endpoint(base_url=url))
        assert (await _read(model, _call()))[0] == "all"
        await model.close()


@pytest.mark.parametrize(
    "event", [b"data: []\n\n", b'data: "x"\n\n', _event({"content": 5}), _event("x"), b"data: \xff\xfe\n\n"]
)
async def test_an_event_of_another_shape_is_a_broken_stream(event: bytes) -> None:
    async with _endpoint(_STREAM, _event({"content": "a"}), event, _END) as (url, _, _):
        model = OpenAIModel(Endpoint(base_url=url))
        with pytest.raises(ModelRetryable) as failed:
            await _read(model, _call())
        assert (failed.value.error_type, failed.value.began) == ("broken_stream", True)
        await model.close()


@pytest.mark.parametrize("body", [b"<html>", b"[]", b'{"choices": 1}', b"\xff"])
async def test_a_whole_answer_of_another_shape_may_be_better_next_time(body: bytes) -> None:
    head = f"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n".encode()
    async with _endpoint(head + body) as (url, _, _):
        model = OpenAIModel(Endpoint(base_url=url))
        with pytest.raises(ModelRetryable) as failed:
            await _read(model, _call())
        assert failed.value.error_type == "bad_answer"
        await model.close()


async def test_a_withheld_answer_is_final() -> None:
    async with _endpoint(_STREAM, _event({"content": "a"}), _event({}, "content_filter")) as (url, _, _):
        model = OpenAIModel(Endpoint(base_url=url))
        with pytest.raises(ModelRefused) as failed:
            await _read(model, _call())
        assert failed.value.error_type == "content_filter"
        await model.close()


async def test_who_closes_the_iterator_ends_the_call() -> None:
    async with _endpoint(_STREAM, _event({"content": "a"}), stays=True) as (url, _, left):
        model = OpenAIModel(Endpoint(base_url=url))
        async with aclosing(model.stream(_call())) as pieces:
            assert await anext(pieces) == Delta(Kind.ANSWER, "a")
        async with asyncio.timeout(5):
            await left.wait()
        await model.close()


async def test_what_a_request_says_and_where_it_comes_from(monkeypatch: pytest.MonkeyPatch) -> None:
    """The settings alone: the library's own variables are of another account."""
    for name in ("API_KEY", "ORG_ID", "PROJECT_ID", "BASE_URL"):
        monkeypatch.setenv(f"OPENAI_{name}", "https://elsewhere.example")
    async with _endpoint(_STREAM, _event({"content": "a"}), _END) as (url, requests, _):
        model = OpenAIModel(Endpoint(base_url=url))
        await _read(model, _call(name="t/0/1"))
        await model.close()
    head, _, body = requests[0].partition(b"\r\n\r\n")
    assert b"elsewhere" not in requests[0]
    assert b"x-client-request-id: t/0/1" in head.lower()
    assert json.loads(body) == {
        "model": "stand-in-40ms",
        "messages": [{"role": "system", "content": "Answer."}, {"role": "user", "content": QUESTION}],
        "stream": True,
        "stream_options": {"include_usage": True},
    }


async def test_the_key_is_never_told(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("DEBUG")
    body = json.dumps({"error": {"message": f"Incorrect API key provided: {KEY}."}}).encode()
    head = f"HTTP/1.1 401 No\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n".encode()
    endpoint = Endpoint(base_url="http://127.0.0.1:1/v1", key=KEY)
    assert KEY not in repr(endpoint)
    async with _endpoint(head + body) as (url, requests, _):
        with structlog.testing.capture_logs() as logs, pytest.raises(ModelRefused) as failed:
            await _read(OpenAIModel(Endpoint(base_url=url, key=KEY)), _call())
    assert f"Bearer {KEY}".encode() in requests[0]
    assert "Incorrect API key provided: ***." in str(failed.value)
    assert KEY not in f"{failed.value!r} {failed.value.__cause__!r} {failed.value.__context__!r} {logs} {caplog.text}"
