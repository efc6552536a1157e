"""A converter elsewhere may say anything: what a job's log cannot hold, or nobody asked for, is a failed attempt."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import orjson
import pytest
from aiohttp import web

from compose.converter.remote import RemoteConverter
from streams.files.converting import ConversionFailed, ConvertRequest

KEY = "converted/1_a_b.mp3"
REQUEST = ConvertRequest(
    url="http://s/a", format="mp3", upload_url="http://s/b", upload_key=KEY, content_type="audio/mpeg"
)
RESULT = {"r2_key": KEY, "size": 10, "checksum": "d41d8cd98f00b204e9800998ecf8427e", "duration_ms": 1}


def _done(**change: Any) -> bytes:
    return orjson.dumps({"type": "result", "result": {**RESULT, **change}})


@pytest.fixture
async def saying() -> AsyncIterator[Callable[[bytes], Any]]:
    """Makes a converter that says so to every request."""
    said = b""

    async def answer(request: web.Request) -> web.Response:
        kind = "application/json" if said[:2] == b"{\n" else "application/x-ndjson"
        return web.Response(body=said + b"\n", content_type=kind)

    app = web.Application()
    app.router.add_post("/convert", answer)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()

    def made(line: bytes) -> RemoteConverter:
        nonlocal said
        said = line
        return RemoteConverter(f"http://127.0.0.1:{runner.addresses[0][1]}")

    yield made
    await runner.cleanup()


async def test_a_result_is_taken(saying: Callable[[bytes], RemoteConverter]) -> None:
    assert (await saying(_done()).convert(REQUEST, lambda stage, share: None)).size == 10


def _plain(**change: Any) -> bytes:
    """What a converter says that tells of no progress: its result, over several lines."""
    return orjson.dumps({**RESULT, **change}, option=orjson.OPT_INDENT_2)


async def test_a_converter_that_only_answers_at_the_end_will_do(saying: Callable[[bytes], RemoteConverter]) -> None:
    result = await saying(_plain(codec="mp3")).convert(REQUEST, lambda stage, share: None)
    assert (result.r2_key, result.size, result.checksum) == (KEY, 10, RESULT["checksum"])


async def test_a_converter_that_never_answers_is_given_up(saying: Callable[[bytes], RemoteConverter]) -> None:
    async def hang(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    async with await asyncio.start_server(hang, "127.0.0.1", 0) as server:
        silent = RemoteConverter(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", longest_s=0.2)
        with pytest.raises(ConversionFailed) as failed:
            await silent.convert(REQUEST, lambda stage, share: None)
    assert (failed.value.code, failed.value.again) == ("converter_lost", True)


@pytest.mark.parametrize(
    "line",
    [
        _plain(r2_key="converted/1_a_other.mp3"),
        _plain(checksum="none"),
        b"{\n}",
        b"{\n" + b" " * (2 << 20) + b"}",
        _done(r2_key="converted/1_a_other.mp3"),
        _done(size=-1),
        _done(size=1 << 60),
        _done(checksum="D41D8CD98F00B204E9800998ECF8427E"),
        _done(checksum="sha256:0"),
        _done(duration_ms=-1),
        _done(parts=[{"part_number": 1, "etag": "abc-2"}]),
        _done(parts=[{"part_number": 1, "etag": RESULT["checksum"]}] * 1_001),
        orjson.dumps({"type": "failed", "code": "No Luck!", "message": "x", "again": False}),
        orjson.dumps({"type": "progress", "stage": "sleeping", "share": 0.5}),
        b"<html>",
    ],
)
async def test_what_cannot_be_is_a_failed_attempt(saying: Callable[[bytes], RemoteConverter], line: bytes) -> None:
    with pytest.raises(ConversionFailed) as failed:
        await saying(line).convert(REQUEST, lambda stage, share: None)
    assert (failed.value.code, failed.value.again) == ("converter_refused", True)
