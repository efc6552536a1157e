"""The gateway's application: endpoints, API key, problem documents, access log and figures, put together."""

from __future__ import annotations

import hmac
import time
from collections.abc import Iterable
from http import HTTPStatus

import structlog
from aiohttp import hdrs, web
from aiohttp.typedefs import Handler, Middleware
from prometheus_client import CollectorRegistry

from streams.web import events, status, storage_stats
from streams.web.ai import endpoints as ai
from streams.web.ai import status as ai_status
from streams.web.ai.followers import Followers
from streams.web.ai.tasks import Tasks
from streams.web.audio import endpoints as audio
from streams.web.audio.recordings import AudioParts
from streams.web.context import (
    AI,
    AUDIO,
    DOCUMENT,
    EVENT_LIMITS,
    FILES,
    FOLLOWERS,
    METRICS,
    PUBLISHER,
    READINESS,
    REGISTRY,
    STORAGE,
    EventLimits,
    ReadinessCheck,
    StorageStats,
)
from streams.web.files import convert, demo, relay, uploads
from streams.web.files.parts import FileParts
from streams.web.metrics import GatewayMetrics
from streams.web.openapi import Endpoints, document
from streams.web.problems import Problem, problems
from streams.web.publisher import EventPublisher

MODULES = (events.endpoints, status.endpoints)

#: Asked every few seconds by supervisors: told at debug only.
_PROBES = {"/api/health", "/api/ready", "/metrics"}

log = structlog.get_logger(__name__)


def make_gateway(
    *,
    publisher: EventPublisher,
    readiness: ReadinessCheck,
    registry: CollectorRegistry,
    version: str,
    api_key: str = "",
    event_limits: EventLimits | None = None,
    audio_parts: AudioParts | None = None,
    storage: StorageStats | None = None,
    tasks: Tasks | None = None,
    followers: Followers | None = None,
    file_parts: FileParts | None = None,
) -> web.Application:
    """The application, owning none of the parts passed in: whoever made them starts and closes them.

    With an `api_key`, every endpoint but health and readiness wants `Authorization: Bearer <key>`. Without `audio_parts`
    nothing of audio is served, without `file_parts` nothing of files, without `storage` nothing of what is stored, without
    `tasks` nothing of AI tasks.
    """
    limits = event_limits or EventLimits()
    metrics = GatewayMetrics(registry)
    optional = (
        (audio_parts, audio.endpoints),
        (storage, storage_stats.endpoints),
        (tasks, ai.endpoints),
        (tasks, ai_status.endpoints),
        (file_parts, uploads.endpoints),
        (file_parts, convert.endpoints),
        (file_parts, demo.endpoints),
        (file_parts and file_parts.relay, relay.endpoints),
    )
    modules = (*MODULES, *(module for part, module in optional if part is not None))
    app = web.Application(
        middlewares=[_observed(metrics), problems, _authorised(api_key, modules)], client_max_size=limits.body_bytes_max
    )
    app[PUBLISHER] = publisher
    app[READINESS] = readiness
    app[REGISTRY] = registry
    app[METRICS] = metrics
    app[EVENT_LIMITS] = limits
    if audio_parts is not None:
        app[AUDIO] = audio_parts
        app.on_shutdown.append(audio.end_connections)
    if storage is not None:
        app[STORAGE] = storage
    if tasks is not None:
        app[AI] = tasks
        app[FOLLOWERS] = followers or Followers()
        app.on_shutdown.append(ai.end_streams)
    if file_parts is not None:
        app[FILES] = file_parts
        app.on_shutdown.append(convert.end_streams)
        if file_parts.relay is not None:
            app.on_shutdown.append(relay.end_measures)
    app[DOCUMENT] = document(modules, version, with_key=bool(api_key))
    for module in modules:
        for endpoint in module.listed:
            app.router.add_route(endpoint.method, endpoint.route or endpoint.path, endpoint.handler)
    return app


def _authorised(api_key: str, modules: Iterable[Endpoints]) -> Middleware:
    """Refuse requests without the key, unknown paths among them; compared in constant time."""
    expected = f"Bearer {api_key}".encode()
    public = {endpoint.handler for module in modules for endpoint in module.listed if endpoint.public}

    @web.middleware
    async def authorised(request: web.Request, handler: Handler) -> web.StreamResponse:
        if api_key and request.match_info.handler not in public:
            given = request.headers.get(hdrs.AUTHORIZATION, "").encode("utf-8", "surrogateescape")
            if not hmac.compare_digest(given, expected):
                raise Problem(
                    401,
                    "Send the gateway's API key as `Authorization: Bearer <key>`.",
                    headers={hdrs.WWW_AUTHENTICATE: "Bearer"},
                )
        return await handler(request)

    return authorised


def _observed(metrics: GatewayMetrics) -> Middleware:
    """Count and log each request: method, path and outcome, never headers, query or body, which may hold secrets."""

    @web.middleware
    async def observed(request: web.Request, handler: Handler) -> web.StreamResponse:
        resource = request.match_info.route.resource
        route = resource.canonical if resource is not None else "unknown"
        started = time.perf_counter()
        outcome = 499  # the client went away
        with metrics.in_flight.track_inprogress():
            try:
                response = await handler(request)
                outcome = response.status
                return response
            finally:
                seconds = time.perf_counter() - started
                metrics.requests.labels(_known(request.method), route, outcome).inc()
                metrics.request_bytes.inc(request.content.total_bytes)
                if outcome != HTTPStatus.SWITCHING_PROTOCOLS:
                    metrics.request_seconds.labels(route).observe(seconds)
                tell = log.debug if route in _PROBES else log.info
                tell(
                    "request",
                    method=request.method,
                    path=request.path,
                    status=outcome,
                    ms=round(seconds * 1000, 1),
                    remote=request.remote,
                )

    return observed


def _known(method: str) -> str:
    """A method as a label: an attacker's own inventions must not make a series each."""
    return method if method in hdrs.METH_ALL else "other"
