"""A gateway of files for tests, with a store and a worker that say what they are told to."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web
from aiohttp.test_utils import TestServer
from prometheus_client import CollectorRegistry

from streams.web.context import Readiness
from streams.web.files.jobs import Jobs
from streams.web.files.parts import FileParts, FileStore, Relay, SignedParts, SignedUpload, StoredFile, UploadLimits
from streams.web.gateway import make_gateway
from streams.web.metrics import FileMetrics
from streams.web.owner import ArchiveAway, Owners
from streams.web.publisher import HeadedRecord, Place, PublishUnavailable
from tests.unit.test_gateway import KeptRecords
from topics.event_ids import parse_event_id
from topics.files import JobRecord, decode
from topics.files_events import JobEvent, encode_event
from topics.malformed import Malformed

KEY = "uploads/" + "0" * 24 + "/a.webm"
DONE = {
    "job_id": "j",
    "status": "completed",
    "progress": 100,
    "r2_key": "converted/1_a_x.mp3",
    "file_name": "x.mp3",
    "size_bytes": 7,
    "error": None,
    "applied": 9,
}


@dataclass
class Store:
    """What it holds, what it was asked; `away` does not answer."""

    held: dict[str, StoredFile] = field(default_factory=dict)
    begun: dict[str, Mapping[str, str]] = field(default_factory=dict)
    trouble: Exception | None = None
    away: bool = False
    relayed: dict[str, tuple[str, bytes]] = field(default_factory=dict)

    def upload(self, key: str, content_type: str, size_bytes: int, expires_s: int) -> SignedUpload:
        headers = {"Content-Type": content_type, "Content-Length": str(size_bytes)}
        return SignedUpload(f"http://store/{key}?X-Amz-Signature=secret&for={expires_s}", headers)

    async def begin(
        self, key: str, content_type: str, size_bytes: int, part_bytes: int, metadata: Mapping[str, str], expires_s: int
    ) -> SignedParts:
        await self._answers()
        self.begun[key] = metadata
        return SignedParts(
            "up", [f"http://store/{key}?part={number}" for number in range(-(-size_bytes // part_bytes))]
        )

    async def complete(self, key: str, upload_id: str, etags: Mapping[int, str]) -> StoredFile:
        await self._answers()
        if self.trouble is not None:
            raise self.trouble
        return self.held[key]

    async def stored(self, key: str) -> StoredFile | None:
        await self._answers()
        return self.held.get(key)

    async def relay(self, key: str, content_type: str, size_bytes: int, blocks: AsyncIterator[bytes]) -> StoredFile:
        await self._answers()
        if self.trouble is not None:
            raise self.trouble
        data = b"".join([block async for block in blocks])
        self.relayed[key] = (content_type, data)
        return StoredFile(len(data), "e")

    async def remove(self, key: str) -> None:
        del self.held[key]

    def link(self, key: str, file_name: str, expires_s: int) -> str:
        return f"http://store/{key}?as={file_name}&for={expires_s}"

    async def _answers(self) -> None:
        if self.away:
            await asyncio.Event().wait()


@dataclass
class Worker:
    """`files.jobs.v1`, the worker that owns it, and ClickHouse: what was written, what the worker answers, and what is kept of
    jobs that it has forgotten."""

    records: list[JobRecord] = field(default_factory=list)
    states: dict[str, dict[str, Any]] = field(default_factory=dict)
    events: dict[str, list[JobEvent]] = field(default_factory=dict)
    kept: dict[str, dict[str, Any]] | None = field(default_factory=dict)
    applied: int = 0
    trouble: str = ""
    asked_events: int = 0
    speaks: asyncio.Event = field(default_factory=asyncio.Event)

    def __post_init__(self) -> None:
        self.speaks.set()

    async def append(self, records: Sequence[HeadedRecord]) -> Place:
        if self.trouble:
            raise PublishUnavailable(self.trouble)
        for key, value, headers in records:
            record = decode(key, value, headers)
            assert not isinstance(record, Malformed), record
            self.records.append(record)
        return Place(0, len(self.records) - 1)

    async def state(self, request: web.Request) -> web.Response:
        job_id = request.match_info["job_id"]
        await self.speaks.wait()
        if job_id not in self.states:
            return web.json_response({"job_id": job_id, "status": "unknown", "applied": self.applied}, status=404)
        return web.json_response(self.states[job_id])

    async def job(self, job_id: str) -> dict[str, Any] | None:
        if self.kept is None:
            raise ArchiveAway("ClickHouse is away")
        return self.kept.get(job_id)

    async def told(self, request: web.Request) -> web.Response:
        self.asked_events += 1
        if request.match_info["job_id"] not in self.states:
            return await self.state(request)
        after = parse_event_id(request.query.get("after", ""))
        events = [e for e in self.events.get(request.match_info["job_id"], []) if after is None or e.id > after]
        return web.json_response({"events": [json.loads(encode_event(event)) for event in events]})


@asynccontextmanager
async def jobs_of(worker: Worker) -> AsyncIterator[Jobs]:
    """What a gateway knows of the jobs of this worker, which is asked over HTTP."""

    async def partitions() -> int:
        return 1

    app = web.Application()
    app.router.add_get("/files/jobs/{job_id}", worker.state)
    app.router.add_get("/files/jobs/{job_id}/events", worker.told)
    async with TestServer(app) as server:
        owners = Owners("files", lambda partition: str(server.make_url("")).rstrip("/"), partitions, timeout_s=30.0)
        yield Jobs(worker, owners, worker)
        await owners.close()


def file_gateway(
    store: FileStore,
    jobs: Jobs,
    limits: UploadLimits,
    relay: Relay | None = None,
    *,
    store_timeout_s: float = 5.0,
    api_key: str = "",
) -> web.Application:
    """A gateway with this store and these jobs."""

    async def readiness() -> Readiness:
        return Readiness(True)

    registry = CollectorRegistry()
    parts = FileParts(store, jobs, FileMetrics(registry), limits, store_timeout_s=store_timeout_s, relay=relay)
    return make_gateway(
        publisher=KeptRecords(), readiness=readiness, registry=registry, version="1", api_key=api_key, file_parts=parts
    )
