"""`POST /api/events`: batch ingest of traffic events, acknowledged once Kafka has them all."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Any

import msgspec
import orjson
from aiohttp import hdrs, web
from aiohttp.http_exceptions import PayloadEncodingError

from streams.web.context import EVENT_LIMITS, METRICS, PUBLISHER
from streams.web.openapi import Endpoints, response
from streams.web.problems import Problem
from streams.web.publisher import PublishUnavailable, Record
from topics.traffic import Malformed, TrafficEvent, decode

JSON_TYPES = ("application/json",)
NDJSON_TYPES = ("application/x-ndjson", "application/ndjson", "application/jsonl", "application/x-jsonlines")
ENCODINGS = ("identity", "gzip", "deflate")
RETRY_AFTER_S = 2
#: Events checked between two turns of the event loop, a few milliseconds of work.
_SLICE = 1_000

_elements = msgspec.json.Decoder(list[msgspec.Raw]).decode
(_,), _schemas = msgspec.json.schema_components([TrafficEvent], ref_template="#/components/schemas/{name}")
_EVENT = {"$ref": "#/components/schemas/TrafficEvent"}

endpoints = Endpoints("events")
endpoints.schemas.update(_schemas)
endpoints.schemas["Accepted"] = {
    "type": "object",
    "required": ["accepted", "rejected"],
    "properties": {
        "accepted": {"type": "integer", "minimum": 0, "description": "events that Kafka has"},
        "rejected": {
            "type": "array",
            "description": "events that are not valid, by their position in the body from 0; send them corrected",
            "items": {
                "type": "object",
                "required": ["index", "error"],
                "properties": {"index": {"type": "integer", "minimum": 0}, "error": {"type": "string"}},
            },
        },
    },
}


@endpoints.add(
    "POST",
    "/api/events",
    summary="Send traffic events",
    body={
        "required": True,
        "description": "A JSON array of events, or one event a line (NDJSON); Content-Encoding gzip is allowed.",
        "content": {kind: {"schema": {"type": "array", "items": _EVENT}} for kind in JSON_TYPES}
        | {kind: {"schema": _EVENT} for kind in NDJSON_TYPES},
    },
    responses={202: response("Kafka has every accepted event", {"$ref": "#/components/schemas/Accepted"})},
    errors=(400, 413, 415, 503),
)
async def post_events(request: web.Request) -> web.Response:
    """Answers 202 once Kafka holds every valid event (acks=all); invalid ones are listed and do not hold up the rest.

    After a 503, or no answer at all, some events may have been stored: send the same body again. An event counts once
    per `event_id`, however often it is sent.
    """
    limits, metrics = request.app[EVENT_LIMITS], request.app[METRICS]
    elements = _split(request.content_type, await _body(request))
    if len(elements) > limits.events_max:
        raise Problem(413, f"{len(elements)} events in one request; at most {limits.events_max} are taken. Split it.")
    records, rejected = await _checked(elements, limits.event_bytes_max)
    metrics.events.labels("rejected").inc(len(rejected))
    try:
        if records:
            await request.app[PUBLISHER].publish(records)
    except PublishUnavailable as error:
        metrics.events.labels("unconfirmed").inc(len(records))
        raise _unconfirmed(error) from None
    metrics.events.labels("accepted").inc(len(records))
    answer = {"accepted": len(records), "rejected": rejected}
    return web.Response(status=202, body=orjson.dumps(answer), content_type="application/json")


async def _body(request: web.Request) -> bytes:
    if request.content_type not in JSON_TYPES + NDJSON_TYPES or hdrs.CONTENT_TYPE not in request.headers:
        given = request.headers.get(hdrs.CONTENT_TYPE, "no Content-Type")
        raise Problem(415, f"{given} is not taken; send {JSON_TYPES[0]} (an array) or {NDJSON_TYPES[0]} (a line each).")
    encoding = request.headers.get(hdrs.CONTENT_ENCODING, "identity").strip().lower()
    if encoding not in ENCODINGS:
        raise Problem(
            415,
            f"Content-Encoding {encoding} is not taken; send gzip or none.",
            headers={hdrs.ACCEPT_ENCODING: ", ".join(ENCODINGS)},
        )
    try:
        return await request.read()
    except (PayloadEncodingError, web.RequestPayloadError) as error:
        raise Problem(400, f"The body cannot be read as {encoding}: {error}") from None


def _split(content_type: str, body: bytes) -> list[Any]:
    """The body's events, each as its own JSON text."""
    if content_type in NDJSON_TYPES:
        return [line for line in body.split(b"\n") if line and not line.isspace()]
    try:
        return _elements(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise Problem(400, f"The body is not a JSON array: {error}") from None


async def _checked(elements: Iterable[Any], event_bytes_max: int) -> tuple[list[Record], list[dict[str, Any]]]:
    records: list[Record] = []
    rejected: list[dict[str, Any]] = []
    for index, element in enumerate(elements):
        value = bytes(element)
        event = decode(value) if len(value) <= event_bytes_max else _too_large(value, event_bytes_max)
        if isinstance(event, Malformed):
            rejected.append({"index": index, "error": event.error})
        else:
            # One line a record: a reader may join a fetch's values by newlines.
            records.append(
                (event.event_id.encode(), msgspec.json.format(value, indent=-1) if b"\n" in value else value)
            )
        if index % _SLICE == _SLICE - 1:
            await asyncio.sleep(0)
    return records, rejected


def _too_large(value: bytes, event_bytes_max: int) -> Malformed:
    return Malformed("too_large", f"the event is {len(value)} bytes; at most {event_bytes_max} are taken")


def _unconfirmed(error: PublishUnavailable) -> Problem:
    return Problem(
        503,
        f"{error}. Not every event is confirmed, some may be stored: send the same request again after "
        f"{RETRY_AFTER_S} s. That is safe, an event counts once per event_id.",
        kind="kafka-unavailable",
        headers={hdrs.RETRY_AFTER: str(RETRY_AFTER_S)},
    )
