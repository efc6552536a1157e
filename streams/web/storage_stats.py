"""`GET /api/storage/stats`: what rests in the object store, how uploads fare, and whose it is at what cost."""

from __future__ import annotations

import re

from aiohttp import hdrs, web

from streams.web.answers import json_answer
from streams.web.context import STORAGE, StorageUnknown
from streams.web.openapi import Endpoints, Json, response
from streams.web.problems import Problem
from topics.files import Status

USERS_MAX = 1_000
_USERS = 100
_MONTH = re.compile(r"2[0-9]{3}-(0[1-9]|1[0-2])")
_RETRY_S = "5"

endpoints = Endpoints("storage")
_COUNT: Json = {"type": "integer", "minimum": 0}
_COST: Json = {"type": "number", "minimum": 0}
_STORED: Json = {
    "type": "object",
    "required": ["objects", "bytes"],
    "properties": {"objects": _COUNT, "bytes": _COUNT},
}
endpoints.schemas["AudioStorage"] = {
    "type": "object",
    "required": ["recordings", "segments", "uploads", "month"],
    "properties": {
        "recordings": _STORED,
        "segments": {**_STORED, "description": "those that are not in a recording yet, or are kept beside it"},
        "uploads": {
            "type": "object",
            "description": "what became of all segments and recordings, by the latest state of each",
            "required": ["stored", "failed", "attempts", "success", "success_limit"],
            "properties": {
                "stored": _COUNT,
                "failed": _COUNT,
                "attempts": {**_COUNT, "description": "made for segments; one each where nothing goes wrong"},
                "success": {"type": ["number", "null"], "description": "the share that was stored; null without any"},
                "success_limit": {"type": "number", "description": "what `success` is to reach"},
            },
        },
        "month": {
            "type": "object",
            "description": "recordings of the sessions that were opened in a month (UTC)",
            "required": ["month", "users", "bytes", "cost_per_month", "most"],
            "properties": {
                "month": {"type": "string", "pattern": f"^{_MONTH.pattern}$"},
                "users": {**_COUNT, "description": "how many users recorded something"},
                "bytes": _COUNT,
                "cost_per_month": _COST,
                "most": {
                    "type": "array",
                    "description": "the users with the most bytes, the first of them first",
                    "items": {
                        "type": "object",
                        "required": ["user", "sessions", "duration_ms", "bytes", "cost_per_month"],
                        "properties": {
                            "user": {"type": "string", "description": "as the session's open has it; may be empty"},
                            "sessions": _COUNT,
                            "duration_ms": _COUNT,
                            "bytes": _COUNT,
                            "cost_per_month": _COST,
                        },
                    },
                },
            },
        },
    },
}
_SHARE: Json = {"type": ["number", "null"], "minimum": 0, "maximum": 1}
_MEAN: Json = {"type": ["number", "null"], "minimum": 0, "description": "null without a result"}


def _counts(*names: str, **described: Json) -> Json:
    """An object of these counts, and of what else is described; all of it is there."""
    properties: Json = {**dict.fromkeys(names, _COUNT), **described}
    return {"type": "object", "required": list(properties), "properties": properties}


endpoints.schemas["FileStorage"] = _counts(
    conversions={**_STORED, "description": "verified results"},
    uploads={
        **_STORED,
        "description": "clients' uploads that a job has found in the store; of others nothing is known",
    },
    jobs=_counts(
        *(status.value for status in Status),
        success={**_SHARE, "description": "the completed ones of those completed or failed; null without any"},
    ),
    verifications={
        **_counts("passed", "failed", success=_SHARE),
        "description": "of jobs that are over: an attempt that was not verified, and was followed by one that was, has passed",
    },
    failures={"type": "object", "additionalProperties": _COUNT, "description": "failed jobs by type of error"},
    times={
        "type": "object",
        "description": "means of completed jobs by the size of the result (10 and 100 MiB), in milliseconds: of the stages "
        "of the last attempt, and from accepted to completed",
        "additionalProperties": _counts(
            "results", **dict.fromkeys(("prepare_ms", "convert_ms", "verify_ms", "took_ms"), _MEAN)
        ),
    },
    gateway={
        **_counts(
            since_ms=_COUNT,
            presigns=_counts("signed", "failed", success=_SHARE),
            direct_uploads=_counts("begun", "stored", "missing", "mismatch", success=_SHARE),
        ),
        "description": "of the gateway that answers, since it started: URLs signed, and uploads straight to the store as it "
        "was asked to complete them",
    },
)
endpoints.schemas["StorageStats"] = {
    "type": "object",
    "required": ["as_of_ms", "objects", "bytes", "cost_per_month", "price_per_gb_month", "prefixes", "audio", "files"],
    "properties": {
        "as_of_ms": {**_COUNT, "description": "when ClickHouse was asked"},
        "objects": _COUNT,
        "bytes": _COUNT,
        "cost_per_month": {**_COST, "description": "of `bytes` at `price_per_gb_month`"},
        "price_per_gb_month": {**_COST, "description": "of 10^9 bytes (SLUICEWAY_STORAGE_PRICE_PER_GB_MONTH)"},
        "prefixes": {"type": "object", "additionalProperties": _STORED, "description": "by the keys' first folder"},
        "audio": {"$ref": "#/components/schemas/AudioStorage"},
        "files": {"$ref": "#/components/schemas/FileStorage"},
    },
}


_PARAMETERS: tuple[Json, ...] = (
    {
        "name": "month",
        "in": "query",
        "description": "the month whose users are told; by default this one (UTC)",
        "schema": {"type": "string", "pattern": f"^{_MONTH.pattern}$"},
    },
    {
        "name": "users",
        "in": "query",
        "description": "how many of them",
        "schema": {"type": "integer", "minimum": 0, "maximum": USERS_MAX, "default": _USERS},
    },
)


@endpoints.add(
    "GET",
    "/api/storage/stats",
    summary="What the object store holds, and what it costs",
    parameters=_PARAMETERS,
    responses={200: response("As of the last seconds", {"$ref": "#/components/schemas/StorageStats"})},
    errors=(400, 503),
)
async def get_storage_stats(request: web.Request) -> web.Response:
    """Comes from the tables in ClickHouse, which hold the size of every object that a worker has put and verified; the
    bucket itself is not listed, so that asking costs the same whatever it holds. Manifests are among the objects, not
    among the bytes; what `sluiceway clean` would remove is in neither, and what others remove from the bucket stays in both.
    503: ClickHouse does not answer.
    """
    month, users = request.query.get("month"), request.query.get("users", str(_USERS))
    if month is not None and not _MONTH.fullmatch(month):
        raise Problem(400, f"month={month[:40]!a} is no month: write it as 2026-11.")
    if not (users.isascii() and users.isdigit() and len(users) < 9 and int(users) <= USERS_MAX):
        raise Problem(400, f"users={users[:40]!a} is not a number from 0 to {USERS_MAX:,}.")
    try:
        found = await request.app[STORAGE].of(month, int(users))
    except StorageUnknown as error:
        raise Problem(
            503,
            f"What is stored is not known now: {error}. Ask again after {_RETRY_S} s.",
            kind="storage-unknown",
            headers={hdrs.RETRY_AFTER: _RETRY_S},
        ) from None
    return json_answer(found)
