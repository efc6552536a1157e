"""Health, readiness, figures and the OpenAPI document."""

from __future__ import annotations

import orjson
from aiohttp import web
from prometheus_client.exposition import choose_encoder

from streams.web.context import DOCUMENT, READINESS, REGISTRY
from streams.web.openapi import Endpoints, response

endpoints = Endpoints("status")
endpoints.schemas["Readiness"] = {
    "type": "object",
    "required": ["ready", "checks"],
    "properties": {
        "ready": {"type": "boolean"},
        "checks": {"type": "object", "additionalProperties": {"type": "string"}},
    },
}
_READINESS = {"$ref": "#/components/schemas/Readiness"}
_HEALTH = {"type": "object", "required": ["status"], "properties": {"status": {"const": "ok"}}}


@endpoints.add(
    "GET",
    "/api/health",
    summary="Whether the process lives",
    responses={200: response("It does", _HEALTH)},
    public=True,
)
async def get_health(request: web.Request) -> web.Response:
    """Says nothing of Kafka or of workers: a supervisor should not restart a gateway for their sake."""
    return _json({"status": "ok"})


@endpoints.add(
    "GET",
    "/api/ready",
    summary="Whether requests can be served",
    responses={200: response("Ready", _READINESS), 503: response("Not ready: `checks` say what is not", _READINESS)},
    public=True,
)
async def get_ready(request: web.Request) -> web.Response:
    """Is 503 while Kafka cannot be reached or a worker restores its state."""
    readiness = await request.app[READINESS]()
    return _json({"ready": readiness.ready, "checks": readiness.checks}, 200 if readiness.ready else 503)


@endpoints.add(
    "GET",
    "/metrics",
    summary="Figures for Prometheus",
    responses={200: response("The text exposition format", {"type": "string"}, "text/plain")},
)
async def get_metrics(request: web.Request) -> web.Response:
    """Answers in OpenMetrics where the Accept header asks for it."""
    encode, content_type = choose_encoder(request.headers.get("Accept", ""))
    return web.Response(body=encode(request.app[REGISTRY]), headers={"Content-Type": content_type})


@endpoints.add(
    "GET",
    "/openapi.json",
    summary="This document",
    responses={200: response("OpenAPI 3.1", {"type": "object"})},
)
async def get_openapi(request: web.Request) -> web.Response:
    """Is made of the endpoints themselves, so that it lists exactly what is served."""
    return _json(request.app[DOCUMENT])


def _json(value: object, status: int = 200) -> web.Response:
    return web.Response(status=status, body=orjson.dumps(value), content_type="application/json")
