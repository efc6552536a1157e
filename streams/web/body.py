"""Reading a JSON object that a client sends into a struct that says what it may hold."""

from __future__ import annotations

from typing import TypeVar

import msgspec
from aiohttp import hdrs, web

from streams.web.openapi import Json
from streams.web.problems import Problem

#: Bytes of a body that is one JSON object.
MAX_BYTES = 1 << 20

T = TypeVar("T")


async def json_body(request: web.Request, kind: type[T], max_bytes: int = MAX_BYTES) -> T:
    """The request's body as a `kind`. Raises Problem 400, 413 or 415."""
    if request.content_type != "application/json" or hdrs.CONTENT_TYPE not in request.headers:
        given = request.headers.get(hdrs.CONTENT_TYPE, "no Content-Type")
        raise Problem(415, f"{given[:100]!a} is not taken; send application/json.")
    body = await request.read()
    if len(body) > max_bytes:
        raise Problem(413, f"The body has {len(body):,} bytes; at most {max_bytes:,} are taken.")
    try:
        return msgspec.json.decode(body, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise Problem(400, f"The body is not what is taken here: {error}.") from None


def json_request(*kinds: type, description: str = "") -> tuple[Json, Json]:
    """The request body object of a struct, the first of `kinds`, and the schemas of all of them."""
    found, schemas = msgspec.json.schema_components(kinds, ref_template="#/components/schemas/{name}")
    body: Json = {"required": True, "content": {"application/json": {"schema": found[0]}}}
    return body | ({"description": description} if description else {}), dict(schemas)
