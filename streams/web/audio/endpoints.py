"""`WS /ws/audio/{session_id}` and what can be asked of a session: its state, its window, its recording."""

from __future__ import annotations

import asyncio
import secrets
from typing import Any
from urllib.parse import urlsplit

import orjson
from aiohttp import hdrs, web

from streams.web.answers import json_answer
from streams.web.audio.recordings import AudioParts
from streams.web.audio.socket import AudioSocket
from streams.web.audio.teller import turn_away
from streams.web.audio.wire import Wire
from streams.web.context import AUDIO
from streams.web.openapi import Endpoints, Json, response
from streams.web.owner import Answer, OwnerAway
from streams.web.problems import Problem
from streams.web.unavailable import RETRY_S, owner_away, store_away
from topics.audio_events import Manifest, decode_manifest
from topics.ids import ID_RULE, valid_id

_STOP_S = 8.0

endpoints = Endpoints("audio")
_INTEGER: Json = {"type": "integer", "minimum": 0}
_OPTIONAL: Json = {"type": ["integer", "null"], "minimum": 0}
_TEXT: Json = {"type": ["string", "null"]}
_RANGES: Json = {
    "type": "array",
    "description": "first and last seq of each, both included",
    "items": {"type": "array", "items": {"type": "integer"}, "minItems": 2, "maxItems": 2},
}
endpoints.schemas["AudioSession"] = {
    "type": "object",
    "required": ["session_id", "status", "format", "rate", "channels", "tier", "store", "user", "seqs", "gaps"],
    "properties": {
        "session_id": {"type": "string"},
        "status": {"enum": ["open", "closing", "closed", "refused"]},
        "user": {"type": "string"},
        "format": {"enum": ["pcm_s16le", "flac", "opus"]},
        "rate": _INTEGER,
        "channels": _INTEGER,
        "tier": {"enum": ["standard", "premium"]},
        "store": {"enum": ["flac", "wav", "asis"]},
        "next_seq": {**_INTEGER, "description": "the first seq that is not there"},
        "last_seq": _OPTIONAL,
        "stored_seq": {**_OPTIONAL, "description": "the object store holds all up to it"},
        "seqs": _RANGES,
        "gaps": _RANGES,
        "bytes": _INTEGER,
        "duration_ms": _OPTIONAL,
        "closed_by": {"enum": ["client", "silence", "refusal", None]},
        "recording": {**_TEXT, "description": "its key in the object store, once it is made"},
        "md5": {**_TEXT, "description": "of the PCM; for opus and flac of the bytes as received"},
        "error": {"type": "string"},
    },
}
endpoints.schemas["AudioDownload"] = {
    "type": "object",
    "required": ["session_id", "recording", "url", "expires_in", "md5", "size_bytes", "duration_ms"],
    "properties": {
        "session_id": {"type": "string"},
        "recording": {"type": "string"},
        "url": {"type": "string", "format": "uri", "description": "gives the recording to whoever has it"},
        "expires_in": {"type": "integer", "description": "seconds"},
        "md5": {"type": "string", "description": "of the PCM; for opus and flac of the bytes as received"},
        "sha256": {"type": "string", "description": "of the file"},
        "size_bytes": _INTEGER,
        "duration_ms": _INTEGER,
    },
}
_ID: Json = {
    "name": "session_id",
    "in": "path",
    "required": True,
    "description": "the session's id, the client's own choice",
    "schema": {"type": "string", "pattern": "^[A-Za-z0-9._-]{1,128}$"},
}


@endpoints.add(
    "GET",
    "/ws/audio/{session_id}",
    route=r"/ws/audio/{session_id:[\s\S]*}",
    summary="Send audio (WebSocket)",
    parameters=[_ID],
    responses={101: {"description": "The connection is a WebSocket from here on"}},
    errors=(400, 403),
)
async def connect_audio(request: web.Request) -> web.StreamResponse:
    """Text frames are JSON control messages, binary frames chunks: 8 bytes seq and 8 bytes captured_ms, both big-endian,
    then the chunk. The client begins with `open` and ends with `close`; the server says `resume`, `durable`, `stored`,
    `closed` and `error`. The README tells how they go together.
    """
    parts = request.app[AUDIO]
    if not request.headers.get(hdrs.UPGRADE, "").lower() == "websocket":
        raise Problem(400, "This is a WebSocket: connect with a WebSocket client.")
    origin = request.headers.get(hdrs.ORIGIN)
    if parts.check_origin and origin is not None and urlsplit(origin).netloc != request.host:
        raise Problem(
            403, f"A page of {origin} may not send audio here: the gateway takes pages of its own address only."
        )
    wire = Wire(request)
    seats = parts.sockets.seats
    if not seats.take():
        # In words, not as an answer to the handshake, which a page of a browser is not told.
        await wire.open()
        await turn_away(wire, parts.sockets)
        return wire.response
    try:
        await wire.open()
        await AudioSocket(request.match_info["session_id"], secrets.token_hex(12), wire, parts.sockets).run()
    finally:
        seats.leave()
    return wire.response


@endpoints.add(
    "GET",
    "/api/audio/{session_id}",
    summary="A session's state",
    parameters=[_ID],
    responses={200: response("What its worker holds of it", {"$ref": "#/components/schemas/AudioSession"})},
    errors=(400, 404, 503),
)
async def get_audio(request: web.Request) -> web.Response:
    """Comes from the worker that owns the session; of one that it does not remember any more, from its manifest."""
    session_id, parts = _session(request), request.app[AUDIO]
    answer = await _asked(parts, session_id)
    if answer.status == 404:
        manifest = await _manifest(parts, session_id)
        if manifest is None:
            raise _unknown(session_id)
        return json_answer(_remembered(manifest))
    return web.Response(body=answer.body, content_type="application/json", headers={hdrs.CACHE_CONTROL: "no-store"})


@endpoints.add(
    "GET",
    "/api/audio/{session_id}/window",
    summary="The last minutes of a session's audio",
    parameters=[_ID],
    responses={
        200: {
            "description": "WAV; the header X-Seqs says which chunks it holds",
            "content": {"audio/wav": {"schema": {"type": "string", "format": "binary"}}},
        },
        204: {"description": "Nothing of the session is in its worker's memory"},
    },
    errors=(400, 404, 422, 503),
)
async def get_audio_window(request: web.Request) -> web.Response:
    """The last 2 minutes of a session of tier standard, the last 5 of one of tier premium, from its worker's memory.

    A session that is over, or that its worker had no room for (X-Deferred), has none. 422: what is there cannot be played.
    """
    session_id, parts = _session(request), request.app[AUDIO]
    answer = await _asked(parts, session_id, "/window")
    if answer.status == 404:
        raise _unknown(session_id)
    if answer.status == 422:
        raise Problem(422, f"The window of {session_id} cannot be played: {orjson.loads(answer.body)['error']}.")
    kept: dict[str, str] = {name: answer.headers[name] for name in ("X-Seqs", "X-Deferred") if name in answer.headers}
    headers: dict[str, str] = {**kept, hdrs.CACHE_CONTROL: "no-store"}
    if answer.status == 204:
        return web.Response(status=204, headers=headers)
    return web.Response(body=answer.body, content_type=answer.content_type, headers=headers)


@endpoints.add(
    "GET",
    "/api/audio/{session_id}/download",
    summary="A link to a session's recording",
    parameters=[_ID],
    responses={
        200: response("For clients that accept JSON", {"$ref": "#/components/schemas/AudioDownload"}),
        302: {"description": "For others: to the recording", "headers": {"Location": {"schema": {"type": "string"}}}},
    },
    errors=(400, 404, 409, 503),
)
async def get_audio_download(request: web.Request) -> web.Response:
    """The link is good for 24 hours and needs no key: whoever has it can read the recording. 409 while the session is
    open, or its recording is being made.
    """
    session_id, parts = _session(request), request.app[AUDIO]
    manifest = await _manifest(parts, session_id)
    if manifest is None:
        await _explain_absence(parts, session_id)
        raise _unknown(session_id)
    file_name = f"{session_id}.{manifest.recording.rpartition('.')[2]}"
    url = parts.store.link(manifest.recording, parts.link_s, file_name)
    if "application/json" not in request.headers.get(hdrs.ACCEPT, ""):
        return web.Response(status=302, headers={hdrs.LOCATION: url, hdrs.CACHE_CONTROL: "no-store"})
    return json_answer(
        {
            "session_id": session_id,
            "recording": manifest.recording,
            "url": url,
            "expires_in": parts.link_s,
            "md5": manifest.md5,
            "sha256": manifest.sha256,
            "size_bytes": manifest.size_bytes,
            "duration_ms": manifest.duration_ms,
        }
    )


async def end_connections(app: web.Application) -> None:
    """At shutdown: tell all audio clients to connect again."""
    await app[AUDIO].sockets.hub.stop(_STOP_S)


def _session(request: web.Request) -> str:
    session_id = request.match_info["session_id"]
    if not valid_id(session_id):
        raise Problem(400, f"{session_id[:100]!a} is no session id: {ID_RULE}.")
    return session_id


async def _asked(parts: AudioParts, session_id: str, path: str = "") -> Answer:
    try:
        answer = await parts.owners.get(session_id, path)
    except OwnerAway as error:
        raise owner_away(error) from None
    if answer.status not in (200, 204, 404, 422):
        raise owner_away(f"its worker is not ready (it answered {answer.status})")
    return answer


async def _manifest(parts: AudioParts, session_id: str) -> Manifest | None:
    try:
        async with asyncio.timeout(parts.store_timeout_s):
            found = await parts.store.manifest(session_id)
    except TimeoutError:
        raise store_away() from None
    if found is None:
        return None
    manifest = decode_manifest(found)
    return manifest if isinstance(manifest, Manifest) else None


async def _explain_absence(parts: AudioParts, session_id: str) -> None:
    answer = await _asked(parts, session_id)
    if answer.status == 404:
        return
    status = orjson.loads(answer.body).get("status")
    if status == "refused":
        raise Problem(404, f"Session {session_id} was not admitted: there is no audio of it.")
    if status == "closed":
        raise Problem(404, f"Session {session_id} was closed without any audio: there is no recording of it.")
    raise Problem(
        409,
        f"Session {session_id} is {status}: its recording is made once it is closed.",
        kind="no-recording-yet",
        headers={hdrs.RETRY_AFTER: RETRY_S},
    )


def _remembered(manifest: Manifest) -> dict[str, Any]:
    names = (
        "session_id",
        "user",
        "format",
        "rate",
        "channels",
        "tier",
        "store",
        "seqs",
        "gaps",
        "opened_ms",
        "closed_ms",
    )
    last = manifest.seqs[-1][1] if manifest.seqs else None
    told: dict[str, Any] = {name: getattr(manifest, name) for name in names}
    return told | {
        "status": "closed",
        "next_seq": 0 if last is None else last + 1,
        "last_seq": last,
        "stored_seq": last,
        "closed_by": manifest.closed_by,
        "recording": manifest.recording,
        "recording_bytes": manifest.size_bytes,
        "duration_ms": manifest.duration_ms,
        "md5": manifest.md5,
        "error": "",
    }


def _unknown(session_id: str) -> Problem:
    return Problem(404, f"There is no session {session_id}.")
