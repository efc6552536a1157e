"""A worker's own small HTTP endpoint: liveness, readiness, metrics and the state of its partitions. Loopback by default."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import msgspec
import psutil
from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

if TYPE_CHECKING:
    from streams.runtime.worker import StreamWorker


class StatusServer:
    """Serves `/health`, `/ready`, `/metrics` and `/status` of one worker, and the routes of its stream."""

    def __init__(self, worker: StreamWorker, routes: Sequence[web.RouteDef] = ()) -> None:
        self._worker = worker
        self._routes = routes
        self._runner: web.AppRunner | None = None

    async def start(self, host: str, port: int) -> str:
        """Listen; returns the endpoint's URL."""
        app = web.Application()
        app.router.add_get("/health", self._health)
        app.router.add_get("/ready", self._ready)
        app.router.add_get("/metrics", self._metrics)
        app.router.add_get("/status", self._status)
        app.router.add_routes(self._routes)
        self._runner = web.AppRunner(app, access_log=None)
        await self._runner.setup()
        site = web.TCPSite(self._runner, host, port)
        await site.start()
        bound = self._runner.addresses[0][1]
        return f"http://{host}:{bound}"

    async def stop(self) -> None:
        """Stop listening."""
        if self._runner is not None:
            await self._runner.cleanup()

    async def _health(self, request: web.Request) -> web.Response:
        return web.json_response({"status": "ok", "stream": self._worker.stream, "pid": os.getpid()})

    async def _ready(self, request: web.Request) -> web.Response:
        ready = self._worker.ready
        return web.json_response({"ready": ready}, status=200 if ready else 503)

    async def _metrics(self, request: web.Request) -> web.Response:
        return web.Response(body=generate_latest(self._worker.registry), headers={"Content-Type": CONTENT_TYPE_LATEST})

    async def _status(self, request: web.Request) -> web.Response:
        return web.Response(body=msgspec.json.encode(self._document()), content_type="application/json")

    def _document(self) -> dict[str, Any]:
        worker = self._worker
        return {
            "stream": worker.stream,
            "pid": os.getpid(),
            "cpu_s": round(sum(os.times()[:2]), 2),
            "rss_bytes": psutil.Process().memory_info().rss,
            "ready": worker.ready,
            "sink_available": worker.sink_available,
            "partitions": [
                {
                    "partition": runner.partition,
                    "ready": runner.ready.is_set(),
                    "doing": runner.doing,
                    "epoch": runner.epoch,
                    "term": runner.meta.term if runner.meta else 0,
                    "folded": runner.expected,
                    "committed": runner.flushed,
                    "end": runner.log_end,
                    "figures": dict(runner.fold.figures()) if runner.ready.is_set() else {},
                }
                for runner in sorted(worker.runners.values(), key=lambda r: r.partition)
            ],
        }
