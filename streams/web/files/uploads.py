"""`POST /api/uploads` and `/api/uploads/complete`: a client's own file goes straight to the bucket, not through here."""

from __future__ import annotations

import asyncio
import re
import secrets
from collections.abc import Awaitable
from typing import Annotated, Any, TypeVar

import msgspec
from aiohttp import hdrs, web
from msgspec import Meta

from streams.files.formats import described
from streams.web.answers import json_answer
from streams.web.body import json_body, json_request
from streams.web.context import FILES
from streams.web.files.parts import FileParts, StoredFile, UploadRefused, UploadUnknown
from streams.web.openapi import Endpoints, Json, response
from streams.web.problems import Problem
from streams.web.unavailable import store_away
from topics.files_keys import UPLOADS, safe_file_name, upload_key

_ID = re.compile(r"[0-9a-f]{24}")
_SIZE = "size"
NAME_CHARS_MAX, CONTENT_TYPE_CHARS_MAX = 1_024, 128
# Python's `$` lets a line break follow; JSON Schema's does not.
CONTENT_TYPE_PATTERN = r"^[a-zA-Z0-9!#$&^_.+-]+/[a-zA-Z0-9!#$&^_.+-]+(; ?[a-zA-Z0-9=\",. +-]+)?(?!\n)$"

T = TypeVar("T")


class NewUpload(msgspec.Struct, frozen=True):
    """A file that is to go up."""

    file_name: Annotated[str, Meta(min_length=1, max_length=NAME_CHARS_MAX, description="made safe; the key shows how")]
    content_type: Annotated[str, Meta(max_length=CONTENT_TYPE_CHARS_MAX, pattern=CONTENT_TYPE_PATTERN)]
    size_bytes: Annotated[int, Meta(ge=1, description="exactly; the store refuses any other size")]


class UploadedPart(msgspec.Struct, frozen=True):
    """A part that the store has taken."""

    part_number: Annotated[int, Meta(ge=1, le=10_000)]
    etag: Annotated[str, Meta(min_length=1, max_length=128, description="the header ETag of the store's answer")]


class UploadedFile(msgspec.Struct, frozen=True):
    """A file of which all bytes have been sent; with `upload_id` and `parts` if it went up in parts."""

    key: Annotated[str, Meta(min_length=1, max_length=1_024)]
    upload_id: Annotated[str, Meta(min_length=1, max_length=1_024)] | None = None
    parts: Annotated[list[UploadedPart], Meta(max_length=10_000)] = []


endpoints = Endpoints("files")
_new, _new_schemas = json_request(NewUpload)
_done, _done_schemas = json_request(UploadedFile)
_TEXT: Json = {"type": "string"}
_COUNT: Json = {"type": "integer", "minimum": 0}
endpoints.schemas.update(_new_schemas | _done_schemas)
endpoints.schemas["Upload"] = {
    "type": "object",
    "description": "`upload_url` and `headers`, or `upload_id`, `part_size` and `parts`",
    "required": ["key", "expires_in"],
    "properties": {
        "key": {**_TEXT, "description": "the source of a conversion, once the file is there"},
        "expires_in": {**_COUNT, "description": "seconds that the URLs are good for"},
        "upload_url": {**_TEXT, "format": "uri", "description": "PUT the file here"},
        "headers": {"type": "object", "additionalProperties": _TEXT, "description": "to be sent as they are"},
        "upload_id": _TEXT,
        "part_size": {**_COUNT, "description": "bytes of every part but the last"},
        "parts": {
            "type": "array",
            "items": {
                "type": "object",
                "required": ["part_number", "upload_url"],
                "properties": {"part_number": {"type": "integer"}, "upload_url": {**_TEXT, "format": "uri"}},
            },
        },
    },
}
endpoints.schemas["StoredUpload"] = {
    "type": "object",
    "required": ["key", "size_bytes", "etag"],
    "properties": {"key": _TEXT, "size_bytes": _COUNT, "etag": _TEXT},
}
endpoints.schemas["Formats"] = {
    "type": "object",
    "required": ["formats", "relay"],
    "properties": {
        "relay": {"type": "boolean", "description": "whether `POST /api/relay` is served"},
        "formats": {
            "type": "array",
            "items": {
                "type": "object",
                "required": ["format", "aliases", "kind", "extension", "content_type", "qualities", "options"],
                "properties": {
                    "format": _TEXT,
                    "aliases": {"type": "array", "items": _TEXT},
                    "kind": {"enum": ["audio", "video"]},
                    "extension": _TEXT,
                    "content_type": _TEXT,
                    "qualities": {"type": "array", "items": _TEXT},
                    "options": {"type": "array", "items": _TEXT},
                    "description": _TEXT,
                },
            },
        },
    },
}


@endpoints.add(
    "GET",
    "/api/formats",
    summary="What files can be converted to",
    responses={200: response("The formats", {"$ref": "#/components/schemas/Formats"})},
)
async def get_formats(request: web.Request) -> web.Response:
    """Formats, their qualities, and the options that each takes."""
    return json_answer({"formats": described(), "relay": request.app[FILES].relay is not None})


@endpoints.add(
    "POST",
    "/api/uploads",
    summary="Begin to upload a file",
    body=_new,
    responses={200: response("Where to PUT it", {"$ref": "#/components/schemas/Upload"})},
    errors=(400, 413, 415, 503),
)
async def post_uploads(request: web.Request) -> web.Response:
    """The file goes straight to the object store. A small one by one PUT to `upload_url` with `headers`; a larger one in
    parts of `part_size`, each by a PUT to its own URL, in any order and several at once. Then `POST /api/uploads/complete`.

    The URLs are secrets: whoever has one may upload this file.
    """
    parts, wanted = request.app[FILES], await json_body(request, NewUpload)
    limits, metrics = parts.uploads, parts.metrics
    if wanted.size_bytes > limits.file_bytes_max:
        raise Problem(413, f"The file has {wanted.size_bytes:,} bytes; at most {limits.file_bytes_max:,} are taken.")
    key = upload_key(secrets.token_hex(12), wanted.file_name)
    told: dict[str, Any] = {"key": key, "expires_in": limits.url_s}
    if wanted.size_bytes <= limits.parts_above_bytes:
        with metrics.presigning():
            signed = parts.store.upload(key, wanted.content_type, wanted.size_bytes, limits.url_s)
        # A client of HTTP says the length by itself; a browser's page may not.
        headers = {name: value for name, value in signed.headers.items() if name != hdrs.CONTENT_LENGTH}
        told |= {"upload_url": signed.url, "headers": headers}
    else:
        with metrics.presigning():
            begun = await in_time(
                parts,
                parts.store.begin(
                    key,
                    wanted.content_type,
                    wanted.size_bytes,
                    limits.part_bytes,
                    {_SIZE: str(wanted.size_bytes)},
                    limits.url_s,
                ),
            )
        urls = [{"part_number": number, "upload_url": url} for number, url in enumerate(begun.urls, 1)]
        told |= {"upload_id": begun.upload_id, "part_size": limits.part_bytes, "parts": urls}
    metrics.uploads.labels("begun").inc()
    return json_answer(told)


@endpoints.add(
    "POST",
    "/api/uploads/complete",
    summary="Say that a file is uploaded",
    body=_done,
    responses={200: response("The store has it", {"$ref": "#/components/schemas/StoredUpload"})},
    errors=(400, 404, 409, 413, 415, 503),
)
async def post_uploads_complete(request: web.Request) -> web.Response:
    """Makes the file of its parts, if it went up in parts, and asks the store for it. Asking again changes nothing.

    404: it is not there, or its upload was given up. 409: the parts are not those that the store has, or not all of them.
    """
    parts, done = request.app[FILES], await json_body(request, UploadedFile)
    checked(done.key)
    if (done.upload_id is None) != (not done.parts):
        raise Problem(400, "upload_id and parts go together: send both, or neither for a file that went up whole.")
    try:
        found = await (_whole(parts, done.key) if done.upload_id is None else _of_parts(parts, done, done.upload_id))
    except Problem as problem:
        if problem.kind in ("upload-missing", "upload-mismatch"):
            parts.metrics.uploads.labels(problem.kind.removeprefix("upload-")).inc()
        raise
    parts.metrics.uploads.labels("stored").inc()
    return json_answer({"key": done.key, "size_bytes": found.size_bytes, "etag": found.etag})


def checked(key: str) -> None:
    """Raises Problem 400 for a key that no upload has."""
    folder, _, rest = key.partition("/")
    upload_id, _, name = rest.partition("/")
    if f"{folder}/" != UPLOADS or not _ID.fullmatch(upload_id) or not name or name != safe_file_name(name):
        raise Problem(400, f"{key[:200]!a} is no key of an upload; send the one that POST /api/uploads gave.")


async def _whole(parts: FileParts, key: str) -> StoredFile:
    found = await in_time(parts, parts.store.stored(key))
    if found is None:
        raise Problem(404, f"The store has no {key}: PUT the file to its URL first.", kind="upload-missing")
    return found


async def _of_parts(parts: FileParts, done: UploadedFile, upload_id: str) -> StoredFile:
    etags = {part.part_number: part.etag.strip('"') for part in done.parts}
    if sorted(etags) != list(range(1, len(done.parts) + 1)):
        raise Problem(400, "The parts are not numbered from 1 on, each once.")
    try:
        found = await in_time(parts, parts.store.complete(done.key, upload_id, etags))
    except UploadUnknown:
        raise Problem(
            404, f"The store knows no such upload of {done.key}: begin another.", kind="upload-missing"
        ) from None
    except UploadRefused as error:
        raise Problem(409, f"The store makes no file of these parts: {error}.", kind="upload-mismatch") from None
    wanted = found.metadata.get(_SIZE, str(found.size_bytes))
    if wanted != str(found.size_bytes):
        await in_time(parts, parts.store.remove(done.key))
        raise Problem(
            409,
            f"The file has {found.size_bytes:,} bytes and was to have {wanted}: parts are missing. It was removed; begin "
            "another upload.",
            kind="upload-mismatch",
        )
    return found


async def in_time(parts: FileParts, asked: Awaitable[T]) -> T:
    """What the store says. Raises Problem 503 when it does not within `store_timeout_s`."""
    try:
        async with asyncio.timeout(parts.store_timeout_s):
            return await asked
    except TimeoutError:
        raise store_away() from None
