"""`/api/tasks`: questions for a model, submitted, asked after, listed and cancelled."""

from __future__ import annotations

from contextlib import aclosing
from typing import Any

from aiohttp import hdrs, web

from streams.web.ai.following import NoTask, follow
from streams.web.ai.journal import JournalFull
from streams.web.ai.submission import submission
from streams.web.ai.tasks import Conflict, Tasks
from streams.web.answers import json_answer
from streams.web.context import AI, FOLLOWERS
from streams.web.idempotency import key_of, key_parameter
from streams.web.openapi import Endpoints, Json, response
from streams.web.owner import ArchiveAway, OwnerAway
from streams.web.problems import Problem
from streams.web.publisher import PublishUnavailable
from streams.web.sse import ARCHIVED_ID, LAST_EVENT_ID, last_event_id, send_events
from streams.web.unavailable import owner_away, unavailable, unconfirmed
from topics.ai import Status
from topics.ids import ID_RULE, valid_id

_PAGE, _PAGE_MAX = 50, 200

endpoints = Endpoints("tasks")
_COUNT: Json = {"type": "integer", "minimum": 0}
_TEXT: Json = {"type": ["string", "null"]}
endpoints.schemas["NewTask"] = {
    "type": "object",
    "required": ["task_type", "user", "language", "question"],
    "additionalProperties": False,
    "properties": {
        "task_type": {"type": "string", "description": "analysis, question, summary or translation"},
        "user": {"type": "string", "minLength": 1, "maxLength": 128},
        "language": {"type": "string", "description": "the answer's"},
        "question": {"type": "string", "minLength": 1, "description": "at most 256 KiB of UTF-8"},
        "model": {**_TEXT, "description": "one that the settings allow; else the task type's own"},
        "webhook_url": {**_TEXT, "description": "told of the end, signed; public addresses only"},
    },
}
endpoints.schemas["SubmittedTask"] = {
    "type": "object",
    "required": ["task_id", "status"],
    "properties": {"task_id": {"type": "string"}, "status": {"enum": list(Status)}},
}
endpoints.schemas["Task"] = {
    "type": "object",
    "required": [
        "task_id",
        "status",
        "result",
        "partial",
        "attempts",
        "error",
        "submitted_ms",
        "updated_ms",
        "usage",
    ],
    "properties": {
        "task_id": {"type": "string"},
        "status": {"enum": list(Status)},
        "user": {"type": "string"},
        "task_type": {"type": "string"},
        "language": {"type": "string"},
        "model": _TEXT,
        "result": {**_TEXT, "description": "the answer, once the task is completed"},
        "partial": {**_TEXT, "description": "what the model has said so far"},
        "attempts": {**_COUNT, "description": "the most that one of its calls took"},
        "error": {
            "type": ["object", "null"],
            "required": ["type", "message"],
            "properties": {"type": {"type": "string"}, "message": {"type": "string"}},
        },
        "submitted_ms": _COUNT,
        "updated_ms": _COUNT,
        "usage": {
            "type": "object",
            "properties": {
                "prompt_tokens": _COUNT,
                "completion_tokens": _COUNT,
                "total_tokens": _COUNT,
                "cost": {"type": "number"},
            },
        },
    },
}
endpoints.schemas["TaskPage"] = {
    "type": "object",
    "required": ["tasks", "next_cursor"],
    "properties": {
        "tasks": {"type": "array", "items": {"$ref": "#/components/schemas/Task"}},
        "next_cursor": {**_TEXT, "description": "send it as `cursor` for the next page; null at the end"},
    },
}
_TASK: Json = {"$ref": "#/components/schemas/Task"}
_ID: Json = {
    "name": "task_id",
    "in": "path",
    "required": True,
    "schema": {"type": "string", "pattern": "^[A-Za-z0-9._-]{1,128}$"},
}
_ROUTE = r"/api/tasks/{task_id:[^/]*}"


def _query(name: str, description: str, schema: Json | None = None) -> Json:
    return {"name": name, "in": "query", "description": description, "schema": schema or {"type": "string"}}


@endpoints.add(
    "POST",
    "/api/tasks",
    summary="Submit a task",
    parameters=[key_parameter("task")],
    body={
        "required": True,
        "content": {"application/json": {"schema": {"$ref": "#/components/schemas/NewTask"}}},
    },
    responses={
        202: response(
            "Kafka has the task, or while Kafka is away this gateway", {"$ref": "#/components/schemas/SubmittedTask"}
        )
    },
    errors=(400, 413, 415, 422, 503),
)
async def post_task(request: web.Request) -> web.Response:
    """Answers once the task is recorded; its result is asked for by `task_id`. With an Idempotency-Key a request may be
    sent again whatever came of it: the id derives from user and key. 422: the key came with another body before.
    """
    if request.content_type != "application/json" or hdrs.CONTENT_TYPE not in request.headers:
        raise Problem(415, "Send the task as application/json.")
    key = key_of(request)
    tasks = request.app[AI]
    submit = await submission(await request.read(), key, tasks.asking)
    try:
        task_id, status = await tasks.submit(submit, keyed=key is not None)
    except Conflict as conflict:
        raise Problem(422, f"{str(conflict).capitalize()}.", kind="idempotency-conflict") from None
    except PublishUnavailable as error:
        raise unconfirmed(error) from None
    except JournalFull as error:
        raise unavailable(f"Kafka is away, and {error}.", "journal-full") from None
    headers: dict[str, str] = {hdrs.LOCATION: f"/api/tasks/{task_id}"}
    return json_answer({"task_id": task_id, "status": status}, 202, headers)


@endpoints.add(
    "GET",
    "/api/tasks",
    summary="List tasks, newest first",
    parameters=[
        _query("user", "only this user's"),
        _query("status", "only those in this state", {"enum": list(Status)}),
        _query("cursor", "`next_cursor` of the page before"),
        _query("limit", f"of one page, {_PAGE} by default", {"type": "integer", "minimum": 1, "maximum": _PAGE_MAX}),
    ],
    responses={200: response("A page of them", {"$ref": "#/components/schemas/TaskPage"})},
    errors=(400, 503),
)
async def get_tasks(request: web.Request) -> web.Response:
    """Lists those that their workers know: all that are not over, and what ended within the last 7 days. Older ones are
    asked for by id.
    """
    query = request.query
    unknown = set(query) - {"user", "status", "cursor", "limit"}
    if unknown:
        raise Problem(400, f"There is no parameter {min(unknown)[:60]!a}; user, status, cursor and limit are taken.")
    status, cursor, limit = query.get("status", ""), query.get("cursor", ""), query.get("limit", str(_PAGE))
    if status and status not in list(Status):
        raise Problem(400, f"status {status[:60]!a} is none of {', '.join(Status)}.")
    accepted_ms, _, task_id = cursor.partition("-")
    if cursor and not (accepted_ms.isascii() and accepted_ms.isdecimal() and valid_id(task_id)):
        raise Problem(400, f"cursor {cursor[:60]!a} is none that a page has given.")
    if not (limit.isascii() and limit.isdecimal() and len(limit) < 5 and 1 <= int(limit) <= _PAGE_MAX):
        raise Problem(400, f"limit {limit[:60]!a} is not a number from 1 to {_PAGE_MAX}.")
    wanted = {"user": query.get("user", ""), "status": status, "before": cursor}
    try:
        tasks, following = await request.app[AI].page({n: v for n, v in wanted.items() if v}, int(limit))
    except OwnerAway as error:
        raise owner_away(error) from None
    return json_answer({"tasks": tasks, "next_cursor": following})


@endpoints.add(
    "GET",
    "/api/tasks/{task_id}",
    route=_ROUTE,
    summary="A task's state and answer",
    parameters=[_ID],
    responses={200: response("The task", _TASK)},
    errors=(400, 404, 503),
)
async def get_task(request: web.Request) -> web.Response:
    """Comes from the worker that owns the task; of one that it has forgotten, 7 days after its end, from ClickHouse."""
    task_id = _task_id(request)
    return json_answer(await _told(task_id, request.app[AI]))


@endpoints.add(
    "DELETE",
    "/api/tasks/{task_id}",
    route=_ROUTE,
    summary="Cancel a task",
    parameters=[_ID],
    responses={
        200: response("It is cancelled", _TASK),
        202: response("The cancel is recorded; its worker has not read it yet", _TASK),
    },
    errors=(400, 404, 409, 503),
)
async def delete_task(request: web.Request) -> web.Response:
    """Also while the model answers, whose call is then hung up. 409: it has ended otherwise before."""
    task_id = _task_id(request)
    try:
        state = await request.app[AI].cancel(task_id)
    except PublishUnavailable as error:
        raise unconfirmed(error) from None
    except (OwnerAway, ArchiveAway) as error:
        raise owner_away(error) from None
    if state is None:
        raise _unknown(task_id)
    status = Status(state["status"])
    if status.final and status is not Status.CANCELLED:
        raise Problem(409, f"Task {task_id} is {status} already.", kind="task-ended")
    return json_answer(state, 200 if status.final else 202)


@endpoints.add(
    "GET",
    "/api/tasks/{task_id}/events",
    route=r"/api/tasks/{task_id:[^/]*}/events",
    summary="Follow a task (server-sent events)",
    parameters=[_ID, LAST_EVENT_ID],
    responses={
        200: response("Events `status`, `token`, `result` and `error`", {"type": "string"}, "text/event-stream"),
        204: {"description": "It has ended with the event that was named: do not ask again"},
    },
    errors=(400, 404, 503),
)
async def get_task_events(request: web.Request) -> web.StreamResponse:
    """Tells the answer as the model says it, in `token`s; a `status` with `discard` true makes those so far void, and
    another attempt follows. The stream ends after `result`, `error`, or the `status` cancelled. Every event has an id that
    any gateway goes on from.
    """
    task_id, last = _task_id(request), last_event_id(request)
    if last == ARCHIVED_ID:
        return web.Response(status=204)
    tasks, followers = request.app[AI], request.app[FOLLOWERS]
    async with aclosing(follow(task_id, last, tasks, followers)) as events:
        try:
            first = await anext(events, None)
        except NoTask:
            raise _unknown(task_id) from None
        except (OwnerAway, ArchiveAway) as error:
            raise owner_away(error) from None
        if first is None and last and Status((await _told(task_id, tasks))["status"]).final:
            return web.Response(status=204)
        return await send_events(request, first, events, breaks=(NoTask, OwnerAway, ArchiveAway))


async def end_streams(app: web.Application) -> None:
    """At shutdown: clients that follow a task are to connect again."""
    app[FOLLOWERS].stop()


def _task_id(request: web.Request) -> str:
    task_id = request.match_info["task_id"]
    if not valid_id(task_id):
        raise Problem(400, f"{task_id[:100]!a} is no task id: {ID_RULE}.")
    return task_id


async def _told(task_id: str, tasks: Tasks) -> dict[str, Any]:
    try:
        state = await tasks.state(task_id)
    except (OwnerAway, ArchiveAway) as error:
        raise owner_away(error) from None
    if state is None:
        raise _unknown(task_id)
    return state


def _unknown(task_id: str) -> Problem:
    return Problem(404, f"There is no task {task_id}.")
