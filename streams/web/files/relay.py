"""`/api/relay`: a file through the gateway to the bucket, which presigned uploads avoid, and what either way costs it.

For demonstrations: served only where it is switched on.
"""

from __future__ import annotations

import asyncio
import re
import secrets
from collections.abc import AsyncIterator

import orjson
from aiohttp import hdrs, web

from streams.web.answers import json_answer
from streams.web.context import FILES, REGISTRY
from streams.web.files.parts import FileParts, Relay, StoredFile, UploadRefused
from streams.web.files.uploads import CONTENT_TYPE_CHARS_MAX, CONTENT_TYPE_PATTERN, NAME_CHARS_MAX
from streams.web.openapi import Endpoints, Json, response
from streams.web.problems import Problem
from streams.web.unavailable import RETRY_S, unavailable
from streams.web.usage import measured
from topics.files_keys import upload_key

_TYPE = re.compile(CONTENT_TYPE_PATTERN)
_TOLD_S = 0.25
_MEASURED_S_MAX = 3_600.0


endpoints = Endpoints("files")
_COUNT: Json = {"type": "integer", "minimum": 0}
_SECONDS: Json = {"type": "number", "minimum": 0}
_USAGE: Json = {
    "seconds": _SECONDS,
    "cpu_seconds": {**_SECONDS, "description": "of the gateway's process, all its threads"},
    "memory_start_bytes": {**_COUNT, "description": "that its process had resident at the start"},
    "memory_peak_bytes": {**_COUNT, "description": "that it had at most, looked at every 50 ms"},
}
endpoints.schemas["Relayed"] = {
    "type": "object",
    "required": ["key", "bytes", *_USAGE],
    "properties": {"key": {"type": "string"}, "bytes": _COUNT, **_USAGE},
}
endpoints.schemas["GatewayUsage"] = {
    "type": "object",
    "required": [*_USAGE, "request_bytes"],
    "properties": {**_USAGE, "request_bytes": {**_COUNT, "description": "of bodies of requests that have ended"}},
}
_FILE: Json = {"required": True, "content": {"*/*": {"schema": {"type": "string", "format": "binary"}}}}


@endpoints.add(
    "POST",
    "/api/relay",
    summary="Upload a file through the gateway",
    body=_FILE,
    parameters=[
        {
            "name": "file_name",
            "in": "query",
            "required": True,
            "schema": {"type": "string", "minLength": 1, "maxLength": NAME_CHARS_MAX},
        }
    ],
    responses={200: response("The store has it", {"$ref": "#/components/schemas/Relayed"})},
    errors=(400, 409, 411, 413, 415, 503),
)
async def post_relay(request: web.Request) -> web.Response:
    """The way that `POST /api/uploads` avoids, to compare with it: the body is the file, and passes through the gateway a part
    at a time. 503 while as many are on their way as may be at once."""
    parts = request.app[FILES]
    relay = _relay(parts)
    file_name, content_type, size_bytes = _wanted(request, parts.uploads.file_bytes_max)
    if relay.relays.locked():
        raise _busy("As many files as may be are being relayed already")
    key = upload_key(secrets.token_hex(12), file_name)
    async with relay.relays:
        with measured(request.app[REGISTRY]) as usage:
            stored = await _relayed(request, key, content_type, size_bytes)
            used = usage.read()
    if stored.size_bytes != size_bytes:
        raise Problem(409, f"The store has {stored.size_bytes:,} bytes of {key}, and {size_bytes:,} were sent.")
    del used["request_bytes"]  # of ended requests, which this one is not yet
    return json_answer({"key": key, "bytes": stored.size_bytes, **used})


@endpoints.add(
    "GET",
    "/api/relay/usage",
    summary="What the gateway uses from now on",
    responses={
        200: response("A line every 250 ms", {"$ref": "#/components/schemas/GatewayUsage"}, "application/x-ndjson")
    },
    errors=(503,),
)
async def get_relay_usage(request: web.Request) -> web.StreamResponse:
    """Lines of JSON until the client goes away, an hour at most: CPU, memory and bytes of the gateway's process since the
    first of them, whoever asked for the work. Measures an upload of either way alike."""
    relay = _relay(request.app[FILES])
    if relay.measures.locked():
        raise _busy("As many clients as may be measure already")
    headers = {hdrs.CONTENT_TYPE: "application/x-ndjson", hdrs.CACHE_CONTROL: "no-store", "X-Accel-Buffering": "no"}
    stream = web.StreamResponse(headers=headers)
    async with relay.measures:
        await stream.prepare(request)
        with measured(request.app[REGISTRY]) as usage:
            try:
                while (used := usage.read())["seconds"] < _MEASURED_S_MAX and not relay.ending.is_set():
                    await stream.write(orjson.dumps(used) + b"\n")
                    await asyncio.sleep(_TOLD_S)
            except ConnectionError:
                pass
    return stream


async def end_measures(app: web.Application) -> None:
    """At shutdown."""
    _relay(app[FILES]).ending.set()


def _relay(parts: FileParts) -> Relay:
    assert parts.relay is not None, "these endpoints are served only with it"
    return parts.relay


def _busy(what: str) -> Problem:
    return unavailable(f"{what}; ask again after {RETRY_S} s.")


def _wanted(request: web.Request, bytes_max: int) -> tuple[str, str, int]:
    """The file's name, type and size, as the request says. Raises Problem."""
    if hdrs.CONTENT_ENCODING in request.headers:
        raise Problem(415, "Send the file as it is, without a Content-Encoding.")
    file_name = request.query.get("file_name", "")
    if not 1 <= len(file_name) <= NAME_CHARS_MAX:
        raise Problem(400, f"file_name is wanted in the query, 1 to {NAME_CHARS_MAX:,} characters.")
    content_type = request.headers.get(hdrs.CONTENT_TYPE, "application/octet-stream")
    if not _TYPE.fullmatch(content_type) or len(content_type) > CONTENT_TYPE_CHARS_MAX:
        raise Problem(415, f"{content_type[:100]!a} is no Content-Type of a file.")
    size_bytes = request.content_length
    if size_bytes is None:
        raise Problem(411, "Send the file's size as Content-Length.")
    if size_bytes < 1:
        raise Problem(400, "The file is empty.")
    if size_bytes > bytes_max:
        raise Problem(413, f"The file has {size_bytes:,} bytes; at most {bytes_max:,} are taken.")
    return file_name, content_type, size_bytes


async def _relayed(request: web.Request, key: str, content_type: str, size_bytes: int) -> StoredFile:
    parts = request.app[FILES]
    stalled_s, now = _relay(parts).stalled_s, asyncio.get_running_loop().time
    try:
        async with asyncio.timeout(stalled_s) as stalled:

            async def blocks() -> AsyncIterator[bytes]:
                async for block in request.content.iter_any():
                    stalled.reschedule(now() + stalled_s)
                    yield block

            return await parts.store.relay(key, content_type, size_bytes, blocks())
    except TimeoutError:
        raise unavailable(
            f"Nothing moved for {stalled_s:.0f} s: the file stopped coming, or the object store does not answer.",
            "objects-unavailable",
        ) from None
    except UploadRefused as error:
        raise Problem(409, f"The store does not take the file: {error}.") from None
    except (ConnectionError, web.RequestPayloadError):
        raise Problem(400, "The body broke off; nothing of it is kept.") from None
