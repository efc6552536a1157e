"""Uploads and conversions over real HTTP, with a store and a worker that say what they are told to."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import msgspec
import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer
from prometheus_client import CollectorRegistry
from structlog.testing import capture_logs

from streams.web.context import Readiness
from streams.web.files.jobs import Jobs
from streams.web.files.parts import (
    FileParts,
    Relay,
    SignedParts,
    SignedUpload,
    StoredFile,
    UploadLimits,
    UploadRefused,
    UploadUnknown,
)
from streams.web.gateway import make_gateway
from streams.web.metrics import FileMetrics
from streams.web.owner import ArchiveAway, Owners
from streams.web.publisher import HeadedRecord, Place, PublishUnavailable
from tests.unit.test_gateway import KeptRecords, problem
from topics.event_ids import parse_event_id
from topics.files import Cancel, JobRecord, Source, Stage, Submit, decode
from topics.files_events import JobAccepted, JobCompleted, JobEvent, JobFailed, JobProgressed, encode_event
from topics.malformed import Malformed

KEY = "uploads/" + "0" * 24 + "/a.webm"
FILE = {"file_name": "a.webm", "content_type": "video/webm", "size_bytes": 10}


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
        if request.match_info["job_id"] not in self.states:
            return await self.state(request)
        after = parse_event_id(request.query.get("after", ""))
        events = [e for e in self.events.get(request.match_info["job_id"], []) if after is None or e.id > after]
        return web.json_response({"events": [json.loads(encode_event(event)) for event in events]})


@pytest.fixture
def worker() -> Worker:
    return Worker()


@pytest.fixture
async def jobs(worker: Worker) -> AsyncIterator[Jobs]:
    async def partitions() -> int:
        return 1

    app = web.Application()
    app.router.add_get("/files/jobs/{job_id}", worker.state)
    app.router.add_get("/files/jobs/{job_id}/events", worker.told)
    async with TestServer(app) as server:
        owners = Owners("files", lambda partition: str(server.make_url("")).rstrip("/"), partitions, timeout_s=30.0)
        yield Jobs(worker, owners, worker)
        await owners.close()


@pytest.fixture
def store() -> Store:
    return Store()


@pytest.fixture
async def client(store: Store, jobs: Jobs) -> AsyncIterator[TestClient[web.Request, web.Application]]:
    async with serving(store, jobs) as made:
        yield made


@pytest.fixture
async def relaying(store: Store, jobs: Jobs) -> AsyncIterator[TestClient[web.Request, web.Application]]:
    async with serving(store, jobs, Relay(stalled_s=0.2)) as made:
        yield made


@asynccontextmanager
async def serving(
    store: Store, jobs: Jobs, relay: Relay | None = None
) -> AsyncIterator[TestClient[web.Request, web.Application]]:
    """A client of a gateway with this store and these jobs."""

    async def readiness() -> Readiness:
        return Readiness(True)

    registry = CollectorRegistry()
    limits = UploadLimits(file_bytes_max=1_000, parts_above_bytes=100, part_bytes=50, url_s=60)
    parts = FileParts(store, jobs, FileMetrics(registry), limits, store_timeout_s=0.1, relay=relay)
    app = make_gateway(publisher=KeptRecords(), readiness=readiness, registry=registry, version="1", file_parts=parts)
    async with TestClient(TestServer(app)) as made:
        yield made


async def test_a_small_file_gets_one_url_and_a_large_one_parts(client: Any, store: Store) -> None:
    with capture_logs() as logs:
        small = await (await client.post("/api/uploads", json={**FILE, "file_name": "../b\"'\n.webm"})).json()
        large = await (await client.post("/api/uploads", json={**FILE, "size_bytes": 101})).json()
    folder, upload_id, name = small["key"].split("/")
    assert (folder, len(upload_id), name) == ("uploads", 24, "b___.webm")
    assert small["headers"] == {"Content-Type": "video/webm"}
    assert (small["expires_in"], small["upload_url"].startswith("http://store/uploads/")) == (60, True)
    assert (large["upload_id"], large["part_size"]) == ("up", 50)
    assert [part["part_number"] for part in large["parts"]] == [1, 2, 3]
    assert store.begun == {large["key"]: {"size": "101"}}
    assert small["key"] != large["key"]
    assert "Signature" not in str(logs)
    metrics = await (await client.get("/metrics")).text()
    assert 'sluiceway_gateway_presigns_total{outcome="signed"} 2.0' in metrics
    assert 'sluiceway_gateway_direct_uploads_total{outcome="begun"} 2.0' in metrics


@pytest.mark.parametrize(
    ("status", "change"),
    [
        (413, {"size_bytes": 1_001}),
        (400, {"size_bytes": 0}),
        (400, {"size_bytes": "10"}),
        (400, {"content_type": "video/webm\r\nx-amz-acl: public-read"}),
        (400, {"content_type": "video/webm\n"}),
        (400, {"content_type": "webm"}),
        (400, {"file_name": ""}),
        (400, {"file_name": "x" * 2_000}),
    ],
)
async def test_a_file_that_is_not_taken_is_a_problem(client: Any, status: int, change: dict[str, Any]) -> None:
    answer = await client.post("/api/uploads", json={**FILE, **change})
    assert answer.status == status
    await problem(answer)


async def test_only_json_is_taken(client: Any) -> None:
    for body, headers, status in (
        (b"{", {"Content-Type": "application/json"}, 400),
        (b"[" * 50_000, {"Content-Type": "application/json"}, 400),
        (b"{}", {"Content-Type": "text/plain"}, 415),
        (b" " * (1 << 20) + b"{}", {"Content-Type": "application/json"}, 413),
    ):
        answer = await client.post("/api/uploads", data=body, headers=headers)
        assert answer.status == status
        await problem(answer)


@pytest.mark.parametrize(
    "key",
    ["converted/a", "uploads/x/a.webm", KEY + "/b", KEY.replace("a.webm", ".."), "uploads/../converted/a", KEY[:-6]],
)
async def test_only_keys_of_uploads_can_be_completed(client: Any, store: Store, key: str) -> None:
    store.held[key] = StoredFile(1, "e")
    answer = await client.post("/api/uploads/complete", json={"key": key})
    assert answer.status == 400


async def test_a_whole_file_is_there_or_not(client: Any, store: Store) -> None:
    answer = await client.post("/api/uploads/complete", json={"key": KEY})
    assert (answer.status, (await problem(answer))["type"]) == (404, "urn:sluiceway:problem:upload-missing")
    store.held[KEY] = StoredFile(10, "etag")
    answer = await client.post("/api/uploads/complete", json={"key": KEY})
    assert await answer.json() == {"key": KEY, "size_bytes": 10, "etag": "etag"}


async def test_parts_are_held_to_what_was_begun(client: Any, store: Store) -> None:
    done = {"key": KEY, "upload_id": "up", "parts": [{"part_number": n, "etag": '"e"'} for n in (2, 1)]}
    for part_numbers in ([1, 3], [1, 1], [2]):
        wrong = {**done, "parts": [{"part_number": n, "etag": "e"} for n in part_numbers]}
        assert (await client.post("/api/uploads/complete", json=wrong)).status == 400
    assert (await client.post("/api/uploads/complete", json={**done, "parts": []})).status == 400
    for trouble, status in ((UploadUnknown("gone"), 404), (UploadRefused("short"), 409)):
        store.trouble = trouble
        assert (await client.post("/api/uploads/complete", json=done)).status == status
    store.trouble = None
    store.held[KEY] = StoredFile(101, "etag-2", metadata={"size": "101"})
    assert (await client.post("/api/uploads/complete", json=done)).status == 200
    store.held[KEY] = StoredFile(50, "etag-1", metadata={"size": "101"})
    answer = await client.post("/api/uploads/complete", json=done)
    assert (answer.status, "parts are missing" in (await problem(answer))["detail"]) == (409, True)
    assert store.held == {}


async def test_a_store_that_is_away_is_waited_for_briefly(client: Any, store: Store) -> None:
    store.away = True
    for path, body in (("/api/uploads", {**FILE, "size_bytes": 101}), ("/api/uploads/complete", {"key": KEY})):
        answer = await client.post(path, json=body)
        assert (answer.status, answer.headers["Retry-After"]) == (503, "2")
    metrics = await (await client.get("/metrics")).text()
    assert 'sluiceway_gateway_presigns_total{outcome="failed"} 1.0' in metrics


async def test_formats_are_listed(client: Any) -> None:
    found = await (await client.get("/api/formats")).json()
    assert [kind["format"] for kind in found["formats"]] == ["mp3", "m4a", "opus", "flac", "wav", "mp4", "webm"]
    document = await (await client.get("/openapi.json")).json()
    assert {"/api/uploads", "/api/uploads/complete", "/api/formats"} <= document["paths"].keys()


async def test_nothing_is_relayed_unless_it_is_switched_on(client: Any, relaying: Any) -> None:
    assert (await client.post("/api/relay?file_name=a", data=b"x")).status == 404
    assert (await client.get("/api/relay/usage")).status == 404
    for gateway, on in ((client, False), (relaying, True)):
        assert (await (await gateway.get("/api/formats")).json())["relay"] is on
        document = await (await gateway.get("/openapi.json")).json()
        assert ("/api/relay" in document["paths"], "/api/relay/usage" in document["paths"]) == (on, on)


async def test_a_relayed_file_is_stored_and_its_cost_told(relaying: Any, store: Store) -> None:
    data = bytes(range(250)) * 4
    async with relaying.get("/api/relay/usage") as measuring:
        before = json.loads(await measuring.content.readline())
        answer = await relaying.post(
            "/api/relay", params={"file_name": "../b.webm"}, data=data, headers={"Content-Type": "video/webm"}
        )
        told = await answer.json()
        async with asyncio.timeout(5):
            while (after := json.loads(await measuring.content.readline()))["request_bytes"] < 1_000:
                pass
    assert answer.status == 200, told
    assert store.relayed == {told["key"]: ("video/webm", data)} and told["key"].endswith("/b.webm")
    assert told["bytes"] == 1_000 and told["seconds"] >= 0 and told["cpu_seconds"] >= 0
    assert told["memory_peak_bytes"] >= told["memory_start_bytes"] > 1 << 20
    assert (before["request_bytes"], after["request_bytes"]) == (0, 1_000)
    assert after["cpu_seconds"] > 0 and after["seconds"] > before["seconds"]
    done = await relaying.post("/api/uploads/complete", json={"key": told["key"]})
    assert done.status == 404, "its key is one of an upload, which this store does not hold as such"


@pytest.mark.parametrize(
    ("status", "query", "headers", "data"),
    [
        (400, "", {}, b"x"),
        (400, "?file_name=" + "x" * 1_025, {}, b"x"),
        (400, "?file_name=a", {}, b""),
        (413, "?file_name=a", {}, b"x" * 1_001),
        (415, "?file_name=a", {"Content-Type": "webm"}, b"x"),
        (415, "?file_name=a", {"Content-Encoding": "gzip"}, b"x"),
    ],
)
async def test_a_relay_that_cannot_be_is_a_problem(
    relaying: Any, store: Store, status: int, query: str, headers: dict[str, str], data: bytes
) -> None:
    answer = await relaying.post(f"/api/relay{query}", data=data, headers=headers)
    assert answer.status == status
    await problem(answer)
    assert store.relayed == {}


async def test_a_relay_ends_when_the_store_refuses_or_nothing_moves(relaying: Any, store: Store) -> None:
    async def endless() -> AsyncIterator[bytes]:
        yield b"x"
        await asyncio.Event().wait()

    assert (await relaying.post("/api/relay?file_name=a", data=endless())).status == 411
    store.trouble = UploadRefused("no room")
    assert (await relaying.post("/api/relay?file_name=a", data=b"x")).status == 409
    store.trouble = None
    stalled = await relaying.post("/api/relay?file_name=a", data=endless(), headers={"Content-Length": "10"})
    assert (stalled.status, stalled.headers["Retry-After"]) == (503, "2")
    whole = b"POST /api/relay?file_name=a HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\nabc"
    _, writer = await asyncio.open_connection(relaying.host, relaying.port)
    with capture_logs() as logs:
        writer.write(whole)
        await writer.drain()
        writer.close()
        async with asyncio.timeout(5):
            while not any(entry.get("path") == "/api/relay" for entry in logs):  # noqa: ASYNC110
                await asyncio.sleep(0.01)
    told = [(entry["event"], entry["status"] < 500) for entry in logs]
    assert told == [("request", True)], "a client that goes away is no bug"
    assert store.relayed == {}
    store.away = True
    away = [relaying.post("/api/relay?file_name=a", data=b"x") for _ in range(3)]
    details = [(await problem(answer))["detail"] for answer in await asyncio.gather(*away)]
    assert sum("already" in detail for detail in details) == 1 and store.relayed == {}


JOB = {"source": {"key": KEY}, "format": "mp3"}
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


def at(number: int) -> dict[str, Any]:
    """What every event has."""
    place = {"source_partition": 0, "epoch": 1, "source_offset": number, "number": 0}
    return {"job_id": "j", "user": "", "at_ms": 1, "progress": number * 10, **place}


COMPLETED = JobCompleted(r2_key="converted/1_a_x.mp3", size_bytes=7, checksum="0" * 32, duration_ms=1, **at(10))


async def test_a_job_is_recorded_and_known_before_its_worker_has_read_it(client: Any, worker: Worker) -> None:
    answer = await client.post("/api/convert", json={**JOB, "quality": "low", "options": {"trim": {"start_ms": 5}}})
    told = await answer.json()
    assert (answer.status, told["status"]) == (202, "accepted")
    (submit,) = worker.records
    assert isinstance(submit, Submit) and (submit.job_id, submit.quality) == (told["job_id"], "low")
    assert submit.options == {"trim": {"start_ms": 5}}
    state = await (await client.get(f"/api/convert/{told['job_id']}")).json()
    assert (state["status"], state["progress"], state["download_url"]) == ("accepted", 0, None)
    worker.applied = 1
    assert (await client.get(f"/api/convert/{told['job_id']}")).status == 404, (
        "its worker has read it, and knows it not"
    )


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"format": "exe"}, "none of mp3"),
        ({"quality": "best"}, "low, medium, high"),
        ({"options": {"scale": {"width": 100}}}, "no picture"),
        ({"source": {}}, "key or a url"),
        ({"source": {"url": "file:///etc/passwd"}}, "source.url"),
        ({"surce": 1}, "surce"),
        ({"user": "a\u0000b"}, "unprintable"),
    ],
)
async def test_a_job_that_cannot_be_is_a_problem(client: Any, worker: Worker, change: Any, said: str) -> None:
    answer = await client.post("/api/convert", json={**JOB, **change})
    assert (answer.status, said in (await problem(answer))["detail"]) == (400, True)
    assert worker.records == []


async def test_a_job_under_a_key_is_one_job(client: Any, worker: Worker) -> None:
    headers = {"Idempotency-Key": "mine"}
    first = await (await client.post("/api/convert", json=JOB, headers=headers)).json()
    again = await (await client.post("/api/convert", json=JOB, headers=headers)).json()
    assert first == again and len(worker.records) == 1
    other = await client.post("/api/convert", json={**JOB, "format": "wav"}, headers=headers)
    assert (other.status, (await problem(other))["type"]) == (422, "urn:sluiceway:problem:idempotency-conflict")
    assert (await client.post("/api/convert", json=JOB, headers={"Idempotency-Key": "\u00e4"})).status == 400


async def test_a_job_under_a_key_stands_as_its_owner_says(client: Any, worker: Worker) -> None:
    headers = {"Idempotency-Key": "mine"}
    first = await (await client.post("/api/convert", json=JOB, headers=headers)).json()
    assert first["status"] == "accepted"
    (submit,) = worker.records
    told = {"job_id": first["job_id"], "submit": msgspec.to_builtins(submit), "applied": 1}
    for status in ("converting", "completed"):
        worker.states[first["job_id"]] = {**told, "status": status}
        again = await (await client.post("/api/convert", json=JOB, headers=headers)).json()
        assert again == {**first, "status": status} and len(worker.records) == 1


async def test_while_the_owner_is_silent_the_gateway_answers_for_what_it_took(client: Any, worker: Worker) -> None:
    headers = {"Idempotency-Key": "mine"}
    first = await (await client.post("/api/convert", json=JOB, headers=headers)).json()
    worker.speaks.clear()
    try:
        async with asyncio.timeout(10):
            again = await (await client.post("/api/convert", json=JOB, headers=headers)).json()
            other = await client.post("/api/convert", json={**JOB, "format": "wav"}, headers=headers)
    finally:
        worker.speaks.set()
    assert again == first and other.status == 422 and len(worker.records) == 1


async def test_what_is_remembered_of_jobs_is_bounded_in_bytes(jobs: Jobs, worker: Worker) -> None:
    options = {"note": "x" * 30_000}
    for number in range(1_300):
        await jobs.submit(Submit(f"j{number}", Source(key="uploads/a/x"), "mp3", number, options=options), keyed=False)
    known = [number for number in range(1_300) if await jobs.state(f"j{number}") is not None]
    assert known == list(range(known[0], 1_300)), "the newest are"
    assert (32 << 20) - 40_000 < len(known) * 30_100 < (32 << 20) + 200_000


async def test_a_result_has_a_link_and_what_is_over_is_not_cancelled(client: Any, worker: Worker) -> None:
    worker.states["j"] = DONE
    for answer in (await client.get("/api/convert/j"), await client.delete("/api/convert/j")):
        state = await answer.json()
        assert (answer.status, state["download_url"]) == (200, "http://store/converted/1_a_x.mp3?as=x.mp3&for=86400")
        assert "applied" not in state and state["download_expires_ms"] > 0
    worker.states["j"] = {**DONE, "status": "converting", "r2_key": None}
    assert (await client.delete("/api/convert/j")).status == 202
    assert worker.records == [Cancel("j")]
    for path, status in (("/api/convert/other", 404), ("/api/convert/no%20id", 400), ("/api/convert/x/events", 404)):
        await problem(answer := await client.get(path))
        assert answer.status == status


@pytest.mark.parametrize("status", ["completed", "failed", "cancelled"])
async def test_what_the_worker_has_forgotten_is_in_clickhouse(client: Any, worker: Worker, status: str) -> None:
    result = {"r2_key": "converted/1_a_x.mp3" if status == "completed" else None}
    worker.kept = {"old": {**DONE, **result, "job_id": "old", "status": status}}
    for answer in (await client.get("/api/convert/old"), await client.delete("/api/convert/old")):
        state = await answer.json()
        assert (answer.status, state["status"], "archived" in state) == (200, status, False)
        assert (state["download_url"] is not None) is (status == "completed")
    assert worker.records == []
    async with asyncio.timeout(2), client.get("/api/convert/old/events") as answer:
        told = await answer.content.read()
    name = {"completed": b"result", "failed": b"error", "cancelled": b"status"}[status]
    assert told.startswith(b"retry: 1000\nid: archived\nevent: " + name) and told.count(b"id: ") == 1
    last = await client.get("/api/convert/old/events", headers={"Last-Event-ID": "archived"})
    assert last.status == 204
    worker.kept = None
    for path in ("/api/convert/old", "/api/convert/old/events"):
        answer = await client.get(path)
        assert (answer.status, answer.headers["Retry-After"]) == (503, "2")


async def test_who_follows_a_job_is_let_go_when_its_worker_forgets_it(client: Any, worker: Worker, jobs: Jobs) -> None:
    worker.states["j"] = {**DONE, "status": "converting", "r2_key": None}
    async with asyncio.timeout(5), client.get("/api/convert/j/events") as answer:
        assert await answer.content.readline() == b":\n"
        del worker.states["j"]
        jobs.note(b"j", None)
        assert b"event" not in await answer.content.read()


async def test_kafka_away_promises_nothing(client: Any, worker: Worker) -> None:
    worker.trouble = "away"
    assert (await client.post("/api/convert", json=JOB)).status == 503


async def test_a_job_is_followed_to_its_end_and_gone_on_with(client: Any, worker: Worker, jobs: Jobs) -> None:
    worker.states["j"] = {**DONE, "status": "converting", "r2_key": None}
    accepted = JobAccepted(format="mp3", quality="low", submitted_ms=1, **at(0))
    moved = JobProgressed(attempt=1, stage=Stage.CONVERTING, percent=20, **at(5))
    worker.events["j"] = [accepted, moved]
    async with client.get("/api/convert/j/events") as answer:
        assert answer.content_type == "text/event-stream"
        begun = await answer.content.readuntil(b'"percent":20}\n\n')
        assert b"id: 1-0-0\nevent: status\n" in begun and b"id: 1-5-0\nevent: status\n" in begun
        worker.states["j"] = DONE
        worker.events["j"].append(COMPLETED)
        jobs.note(b"j", None)
        async with asyncio.timeout(2):
            ended = await answer.content.read()
    assert ended.startswith(b"id: 1-10-0\nevent: result\n") and b"http://store/converted/" in ended
    async with client.get("/api/convert/j/events", headers={"Last-Event-ID": "1-5-0"}) as answer:
        again = await answer.content.read()
    assert again.startswith(b"retry: 1000\nid: 1-10-0\n") and again.count(b"id: ") == 1
    async with asyncio.timeout(2):
        last = await client.get("/api/convert/j/events", headers={"Last-Event-ID": "1-10-0"})
    assert last.status == 204
    worker.states["j"] = {**DONE, "status": "failed", "error": {"type": "not_media", "message": "no"}, "r2_key": None}
    worker.events["j"] = [JobFailed(error_type="not_media", error="no", **at(10))]
    async with client.get("/api/convert/j/events") as answer:
        told = await answer.content.read()
    assert b"event: error\n" in told and b'"message":"no"' in told
