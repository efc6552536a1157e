"""The converter behind HTTP: `POST /convert` does one conversion while the request lasts; hanging up ends it."""

from __future__ import annotations

import asyncio
import hmac
from contextlib import suppress

import msgspec
from aiohttp import hdrs, web
from aiohttp.typedefs import Handler, Middleware

from compose.converter.pool import ProcessConverter
from compose.converter.words import Done, Failed, Going, Word, failed, line
from streams.files.converting import ConversionFailed, ConvertRequest, ConvertResult
from streams.web.problems import Problem, problems
from topics.files import Stage

#: A request's URLs may be many.
_BODY_BYTES_MAX = 8 << 20
#: So often something is written, so that whoever waits knows that somebody works, seconds.
ALIVE_S = 5.0
NDJSON = "application/x-ndjson"

_requests = msgspec.json.Decoder(ConvertRequest)


def make_service(converter: ProcessConverter, key: str = "") -> web.Application:
    """The application; with a `key` every conversion wants `Authorization: Bearer <key>`.

    Who accepts `application/x-ndjson` is told of progress as it comes; all others get `{"r2_key", "size", "checksum"}` at
    the end, or a problem document whose `type` ends with the failure's code.
    """

    async def convert(request: web.Request) -> web.StreamResponse:
        try:
            asked = _requests.decode(await request.read())
        except msgspec.DecodeError as error:
            raise Problem(400, f"This is no conversion: {error}.", kind="bad_request") from None
        if NDJSON in request.headers.get(hdrs.ACCEPT, ""):
            return await _told(request, converter, asked)
        try:
            result = await converter.convert(asked, lambda stage, share: None)
        except ConversionFailed as error:
            status = 503 if error.again else 422
            raise Problem(status, str(error), kind=error.code) from None
        return web.Response(body=msgspec.json.encode(result), content_type="application/json")

    async def health(request: web.Request) -> web.Response:
        return web.json_response({"status": "ok", "busy": converter.busy})

    app = web.Application(middlewares=[problems, _authorised(key)], client_max_size=_BODY_BYTES_MAX)
    app.add_routes([web.post("/convert", convert), web.get("/health", health)])
    return app


async def _told(request: web.Request, converter: ProcessConverter, asked: ConvertRequest) -> web.StreamResponse:
    answer = web.StreamResponse(headers={hdrs.CONTENT_TYPE: NDJSON})
    words: asyncio.Queue[Word] = asyncio.Queue()

    def on_progress(stage: Stage, share: float) -> None:
        words.put_nowait(Going(stage, share))

    work = asyncio.create_task(converter.convert(asked, on_progress))
    work.add_done_callback(lambda done: words.put_nowait(_last(done)))
    try:
        await answer.prepare(request)
        while True:
            try:
                async with asyncio.timeout(ALIVE_S):
                    word = await words.get()
            except TimeoutError:
                await answer.write(b"\n")
                continue
            await answer.write(line(word))
            if not isinstance(word, Going):
                break
        await answer.write_eof()
    finally:
        work.cancel()
        with suppress(asyncio.CancelledError, Exception):
            await work
    return answer


def _last(work: asyncio.Task[ConvertResult]) -> Done | Failed:
    if work.cancelled():
        return Failed("cancelled", "the converter is going down", True)
    error = work.exception()
    if error is None:
        return Done(work.result())
    if isinstance(error, ConversionFailed):
        return failed(error)
    return Failed("converter", f"the converter failed: {type(error).__name__}", True)


def _authorised(key: str) -> Middleware:
    expected = f"Bearer {key}".encode()

    @web.middleware
    async def authorised(request: web.Request, handler: Handler) -> web.StreamResponse:
        given = request.headers.get(hdrs.AUTHORIZATION, "").encode("utf-8", "surrogateescape")
        if key and request.path != "/health" and not hmac.compare_digest(given, expected):
            raise Problem(401, "Send the converter's key as `Authorization: Bearer <key>`.", kind="unauthorized")
        return await handler(request)

    return authorised
