"""`/api/async-status`, `/api/ai-status` and `/api/queue-status`: how AI tasks fare, of all partitions together."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from aiohttp import web

from streams.web.answers import json_answer
from streams.web.context import AI
from streams.web.openapi import Endpoints, Json, response
from streams.web.owner import OwnerAway
from topics.ai import Status
from topics.specs import AI_TASKS

endpoints = Endpoints("tasks")
_COUNT: Json = {"type": "integer", "minimum": 0}
_RATE: Json = {"type": ["number", "null"], "description": "from 0 to 1; null before there was one"}
_MS: Json = {"type": ["number", "null"], "description": "milliseconds, of the last completed tasks"}
_STATUS: Json = {"enum": ["healthy", "unavailable"]}
_DETAIL: Json = {"type": "string", "description": "what is unavailable"}
endpoints.schemas["QueueStatus"] = {
    "type": "object",
    "required": ["status", "service", "queue"],
    "properties": {
        "status": _STATUS,
        "service": {"type": "string"},
        "queue": {"type": "string"},
        "detail": _DETAIL,
        "queueDepth": {**_COUNT, "description": "tasks that have not begun"},
        "processing": _COUNT,
        "oldestPendingMs": {**_MS, "description": "when the oldest of these was accepted"},
        "processedPerMinute": {**_COUNT, "description": "that ended within the last minute"},
        "submitted": _COUNT,
        "completed": _COUNT,
        "failed": _COUNT,
        "cancelled": _COUNT,
        "completionRate": {**_RATE, "description": "of the tasks that are over"},
        "failureRate": {**_RATE, "description": "of the tasks that are over"},
        "retryRate": {**_RATE, "description": "of the calls of models, those made again after an error"},
        "deadLetters": _COUNT,
        "meanProcessingMs": _MS,
        "p95ProcessingMs": _MS,
        "errorTypes": {"type": "object", "additionalProperties": _COUNT},
    },
}
endpoints.schemas["AiStatus"] = {
    "type": "object",
    "required": ["status", "service"],
    "properties": {
        "status": _STATUS,
        "service": {"type": "string"},
        "detail": _DETAIL,
        "taskTypes": {"type": "array", "items": {"type": "string"}},
        "models": {
            "type": "object",
            "additionalProperties": {
                "type": "object",
                "properties": {"running": _COUNT, "waiting": _COUNT, "meanCallMs": _MS},
            },
        },
        "calls": _COUNT,
        "retries": _COUNT,
        "lostCalls": _COUNT,
    },
}
endpoints.schemas["AsyncStatus"] = {
    "type": "object",
    "required": ["status", "service", "method", "details"],
    "properties": {
        "status": _STATUS,
        "service": {"type": "string"},
        "method": {"type": "string"},
        "detail": _DETAIL,
        "details": {
            "type": "object",
            "required": ["processingMethod", "batchProcessing", "streamingSupport", "fallbackSupport"],
            "properties": {
                "processingMethod": {"type": "string"},
                "batchProcessing": {"type": "boolean"},
                "streamingSupport": {"type": "boolean"},
                "fallbackSupport": {"type": "boolean"},
            },
        },
    },
}


@endpoints.add(
    "GET",
    "/api/queue-status",
    summary="The queue of AI tasks",
    responses={200: response("Its figures", {"$ref": "#/components/schemas/QueueStatus"})},
)
async def get_queue_status(request: web.Request) -> web.Response:
    """Counts since the stream began, as the owners of all partitions have them; without figures while one of them is away."""
    about = {"service": "AI task queue", "queue": AI_TASKS}
    return await _told(request, about, queue_status)


@endpoints.add(
    "GET",
    "/api/ai-status",
    summary="The models of AI tasks",
    responses={200: response("Their figures", {"$ref": "#/components/schemas/AiStatus"})},
)
async def get_ai_status(request: web.Request) -> web.Response:
    """What may be asked, and how many calls are under way or wait for a slot."""
    asking = request.app[AI].asking
    about = {"service": "AI tasks", "taskTypes": list(asking.task_types)}
    return await _told(request, about, lambda queues: ai_status(queues, asking.models))


@endpoints.add(
    "GET",
    "/api/async-status",
    summary="How AI tasks are processed",
    responses={200: response("In words", {"$ref": "#/components/schemas/AsyncStatus"})},
)
async def get_async_status(request: web.Request) -> web.Response:
    """What this system does, and whether it does it now."""
    about = {
        "service": "Sluiceway AI tasks",
        "method": "Partitioned log + batch processing",
        "details": {
            "processingMethod": "Kafka partitions: the owner of one holds its tasks, fenced by (term, attempt)",
            "batchProcessing": True,
            "streamingSupport": True,
            "fallbackSupport": request.app[AI].journal is not None,
        },
    }
    return await _told(request, about, lambda queues: {})


def queue_status(queues: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The figures of all partitions' queues."""

    def total(name: str) -> int:
        return sum(queue[name] for queue in queues)

    over = sum(total(status) for status in Status if status.final)
    durations = sorted(ms for queue in queues for ms in queue["durations_ms"])
    errors: Counter[str] = Counter()
    for queue in queues:
        errors.update(queue["errors"])
    return {
        "queueDepth": total("pending"),
        "processing": total("processing"),
        "oldestPendingMs": min(
            (q["oldest_pending_ms"] for q in queues if q["oldest_pending_ms"] is not None), default=None
        ),
        "processedPerMinute": total("finished_last_minute"),
        "submitted": total("submitted"),
        "completed": total("completed"),
        "failed": total("failed"),
        "cancelled": total("cancelled"),
        "completionRate": _share(total("completed"), over),
        "failureRate": _share(total("failed"), over),
        "retryRate": _share(total("retries"), total("calls")),
        "deadLetters": total("dead_letters"),
        "meanProcessingMs": round(sum(durations) / len(durations), 1) if durations else None,
        "p95ProcessingMs": durations[-(-len(durations) * 95 // 100) - 1] if durations else None,
        "errorTypes": dict(errors),
    }


def ai_status(queues: Sequence[dict[str, Any]], models: Sequence[str]) -> dict[str, Any]:
    """The figures of all partitions' calls."""
    found: dict[str, Any] = {name: {"running": 0, "waiting": 0, "meanCallMs": None} for name in models}
    means: dict[str, list[float]] = {}
    for queue in queues:
        for name, line in queue["models"].items():
            model = found.setdefault(name, {"running": 0, "waiting": 0, "meanCallMs": None})
            model["running"] += line["running"]
            model["waiting"] += line["waiting"]
            if line["mean_call_ms"]:
                means.setdefault(name, []).append(line["mean_call_ms"])
    for name, values in means.items():
        found[name]["meanCallMs"] = round(sum(values) / len(values), 1)
    names = {"calls": "calls", "retries": "retries", "lostCalls": "lost_calls"}
    return {"models": found, **{shown: sum(queue[name] for queue in queues) for shown, name in names.items()}}


def _share(part: int, whole: int) -> float | None:
    return round(part / whole, 4) if whole else None


async def _told(
    request: web.Request, about: dict[str, Any], figures: Callable[[list[dict[str, Any]]], dict[str, Any]]
) -> web.Response:
    try:
        told = {"status": "healthy", **about, **figures(await request.app[AI].queues())}
    except OwnerAway as error:
        told = {"status": "unavailable", **about, "detail": str(error)}
    return json_answer(told)
