"""`/api/convert`: file jobs, submitted, asked after, followed and cancelled."""

from __future__ import annotations

import secrets
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Annotated, Any

import msgspec
from aiohttp import web
from msgspec import Meta

from streams.files.formats import plan
from streams.web.answers import json_answer
from streams.web.body import json_body, json_request
from streams.web.context import FILES
from streams.web.files.jobs import JobConflict
from streams.web.files.parts import FileParts
from streams.web.idempotency import ID_HEX, id_of_key, key_of, key_parameter
from streams.web.openapi import Endpoints, Json, response
from streams.web.owner import ArchiveAway, OwnerAway
from streams.web.problems import Problem
from streams.web.publisher import PublishUnavailable
from streams.web.sse import ARCHIVED_ID, LAST_EVENT_ID, Told, last_event_id, send_events
from streams.web.unavailable import owner_away, unconfirmed
from topics.event_ids import EventId, parse_event_id
from topics.files import MAX_SUBMIT_BYTES, Source, Status, new_submit
from topics.files_events import (
    AttemptDiscarded,
    JobAccepted,
    JobCancelled,
    JobCompleted,
    JobEvent,
    JobFailed,
    JobPrepared,
    JobProgressed,
    ResultUploaded,
)
from topics.ids import ID_RULE, valid_id
from topics.malformed import Malformed

_SHOWN = (
    "job_id", "status", "progress", "user", "format", "quality", "file_name", "r2_key", "size_bytes", "checksum",
    "duration_ms", "error", "attempts", "submitted_ms", "started_ms", "finished_ms", "updated_ms",
)  # fmt: skip


class NewJob(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A file to convert. `GET /api/formats` says what `format`, `quality` and `options` may be."""

    source: Source
    format: Annotated[str, Meta(min_length=1, max_length=64)]
    quality: Annotated[str, Meta(min_length=1, max_length=64)] | None = None
    options: dict[str, Any] = {}
    user: Annotated[str, Meta(min_length=1, max_length=128)] | None = None
    file_name: Annotated[str, Meta(min_length=1, max_length=1_024)] | None = None


endpoints = Endpoints("files")
_new, _new_schemas = json_request(NewJob)
endpoints.schemas.update(_new_schemas)
_COUNT: Json = {"type": ["integer", "null"], "minimum": 0}
_TEXT: Json = {"type": ["string", "null"]}
endpoints.schemas["SubmittedJob"] = {
    "type": "object",
    "required": ["job_id", "status"],
    "properties": {"job_id": {"type": "string"}, "status": {"enum": list(Status)}},
}
endpoints.schemas["Job"] = {
    "type": "object",
    "required": [
        "job_id",
        "status",
        "progress",
        "r2_key",
        "download_url",
        "download_expires_ms",
        "size_bytes",
        "error",
    ],
    "properties": {
        "job_id": {"type": "string"},
        "status": {"enum": list(Status)},
        "progress": {"type": "integer", "minimum": 0, "maximum": 100},
        "r2_key": {**_TEXT, "description": "the result's, once it is completed"},
        "download_url": {**_TEXT, "description": "gives the result to whoever has it; signed anew each time"},
        "download_expires_ms": _COUNT,
        "size_bytes": _COUNT,
        "checksum": {**_TEXT, "description": "MD5"},
        "duration_ms": {**_COUNT, "description": "how long the result plays"},
        "error": {
            "type": ["object", "null"],
            "required": ["type", "message"],
            "properties": {"type": {"type": "string"}, "message": {"type": "string"}},
        },
    },
}
_JOB: Json = {"$ref": "#/components/schemas/Job"}
_ID: Json = {
    "name": "job_id",
    "in": "path",
    "required": True,
    "schema": {"type": "string", "pattern": "^[A-Za-z0-9._-]{1,128}$"},
}
_ROUTE = r"/api/convert/{job_id:[^/]*}"


@endpoints.add(
    "POST",
    "/api/convert",
    summary="Convert a file",
    parameters=[key_parameter("job")],
    body=_new,
    responses={202: response("Kafka has the job", {"$ref": "#/components/schemas/SubmittedJob"})},
    errors=(400, 413, 415, 422, 503),
)
async def post_convert(request: web.Request) -> web.Response:
    """Answers once the job is recorded. With an Idempotency-Key a request may be sent again whatever came of it: the id
    derives from user and key. 422: the key came with another job before.
    """
    asked = await json_body(request, NewJob, MAX_SUBMIT_BYTES)
    key = key_of(request)
    planned = plan(asked.format, asked.quality, asked.options)
    if isinstance(planned, Malformed):
        raise Problem(400, f"This cannot be made: {planned.error}.", kind="invalid-job")
    job_id = "j-" + secrets.token_hex(ID_HEX // 2) if key is None else id_of_key(asked.user or "", key)
    fields = {name: value for name, value in msgspec.structs.asdict(asked).items() if value is not None}
    submit = new_submit({**fields, "job_id": job_id, "submitted_ms": time.time_ns() // 1_000_000})
    if isinstance(submit, Malformed):
        raise Problem(400, f"The job is not valid: {submit.error}.", kind="invalid-job")
    try:
        status = await request.app[FILES].jobs.submit(submit, keyed=key is not None)
    except JobConflict as conflict:
        raise Problem(422, f"{str(conflict).capitalize()}.", kind="idempotency-conflict") from None
    except PublishUnavailable as error:
        raise unconfirmed(error) from None
    return json_answer({"job_id": job_id, "status": status}, 202)


@endpoints.add(
    "GET",
    "/api/convert/{job_id}",
    route=_ROUTE,
    summary="A conversion's state and result",
    parameters=[_ID],
    responses={200: response("The job", _JOB)},
    errors=(400, 404, 503),
)
async def get_convert(request: web.Request) -> web.Response:
    """Comes from the worker that owns the job; of one that it has forgotten, 7 days after its end, from ClickHouse. The link
    is signed on each request, is good for 24 hours and needs no key.
    """
    return json_answer(_shown(await _told(request), request.app[FILES]))


@endpoints.add(
    "DELETE",
    "/api/convert/{job_id}",
    route=_ROUTE,
    summary="Cancel a conversion",
    parameters=[_ID],
    responses={
        200: response("It was over already", _JOB),
        202: response("It will be cancelled, if it is not over", _JOB),
    },
    errors=(400, 404, 503),
)
async def delete_convert(request: web.Request) -> web.Response:
    """Its converter is stopped, and what it has uploaded is removed. What has ended stays as it is."""
    state, parts = await _told(request), request.app[FILES]
    if Status(state["status"]).final:
        return json_answer(_shown(state, parts))
    try:
        await parts.jobs.cancel(state["job_id"])
    except PublishUnavailable as error:
        raise unconfirmed(error) from None
    return json_answer(_shown(state, parts), 202)


@endpoints.add(
    "GET",
    "/api/convert/{job_id}/events",
    route=_ROUTE + "/events",
    summary="Follow a conversion (server-sent events)",
    parameters=[_ID, LAST_EVENT_ID],
    responses={
        200: response("Events `status`, `result` and `error`", {"type": "string"}, "text/event-stream"),
        204: {"description": "It has ended with the event that was named: do not ask again"},
    },
    errors=(400, 404, 503),
)
async def get_convert_events(request: web.Request) -> web.StreamResponse:
    """Each `status` has `status` and `progress`. The stream ends after `result` (the job as `GET` shows it), `error`, or the
    status cancelled. Every event has an id that any gateway goes on from.
    """
    last, parts = last_event_id(request), request.app[FILES]
    if last == ARCHIVED_ID:
        return web.Response(status=204)
    state, after = await _told(request), parse_event_id(last)
    async with aclosing(_followed(state, after, parts)) as events:
        try:
            first = await anext(events, None)
        except (OwnerAway, ArchiveAway) as error:
            raise owner_away(error) from None
        if first is None and after is not None and Status(state["status"]).final:
            return web.Response(status=204)
        return await send_events(request, first, events, breaks=(OwnerAway, ArchiveAway))


async def end_streams(app: web.Application) -> None:
    """At shutdown: clients that follow a job are to connect again."""
    app[FILES].jobs.stop()


async def _followed(
    state: dict[str, Any], after: EventId | None, parts: FileParts
) -> AsyncGenerator[Told | None, None]:
    if "archived" in state and Status(state["status"]).final:
        yield _end(ARCHIVED_ID, state, parts)
        return
    async with aclosing(parts.jobs.follow(state["job_id"], after)) as events:
        async for event in events:
            yield None if event is None else await _event(event, parts)


async def _event(event: JobEvent, parts: FileParts) -> Told:
    """An event as clients are told of it."""
    data: dict[str, Any] = {"job_id": event.job_id, "progress": event.progress}
    match event:
        case JobCompleted() | JobFailed():
            state = await parts.jobs.state(event.job_id)
            assert state is not None, "a job that was told to have ended is known"
            return _end(str(event.id), state, parts)
        case JobCancelled():
            return Told(str(event.id), "status", {**data, "status": Status.CANCELLED}, final=True)
        case AttemptDiscarded():
            more = {"error_type": event.error_type, "retry_after_ms": event.retry_after_ms}
            return Told(str(event.id), "status", {**data, "status": Status.ACCEPTED, **more})
        case JobPrepared():
            data["status"] = Status.PREPARED
        case JobProgressed():
            data |= {"status": Status.CONVERTING, "stage": event.stage, "percent": event.percent}
        case ResultUploaded():
            data |= {"status": Status.VERIFYING, "size_bytes": event.size_bytes}
        case JobAccepted():
            data["status"] = Status.ACCEPTED
        case _:
            data |= {"status": Status.ACCEPTED, "attempt": event.attempt}
    return Told(str(event.id), "status", data)


def _end(event_id: str, state: dict[str, Any], parts: FileParts) -> Told:
    """The last event, of a job that is over."""
    match state["status"]:
        case Status.COMPLETED:
            return Told(event_id, "result", _shown(state, parts), final=True)
        case Status.FAILED:
            return Told(event_id, "error", _shown(state, parts), final=True)
        case _:
            data = {name: state[name] for name in ("job_id", "progress", "status")}
            return Told(event_id, "status", data, final=True)


def _shown(state: dict[str, Any], parts: FileParts) -> dict[str, Any]:
    """A job as clients see it, with a link to its result."""
    told = {name: state[name] for name in _SHOWN if name in state}
    url = expires_ms = None
    if state["status"] == Status.COMPLETED:
        with parts.metrics.presigning():
            url = parts.store.link(state["r2_key"], state["file_name"], parts.link_s)
        expires_ms = time.time_ns() // 1_000_000 + parts.link_s * 1_000
    return told | {"download_url": url, "download_expires_ms": expires_ms}


async def _told(request: web.Request) -> dict[str, Any]:
    job_id = request.match_info["job_id"]
    if not valid_id(job_id):
        raise Problem(400, f"{job_id[:100]!a} is no job id: {ID_RULE}.")
    try:
        state = await request.app[FILES].jobs.state(job_id)
    except (OwnerAway, ArchiveAway) as error:
        raise owner_away(error) from None
    if state is None:
        raise Problem(404, f"There is no job {job_id}.")
    return state
