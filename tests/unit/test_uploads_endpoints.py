"""Uploads over real HTTP, straight to a store and through the gateway, with a store that says what it is told to."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer
from structlog.testing import capture_logs

from streams.web.files.parts import Relay, StoredFile, UploadLimits, UploadRefused, UploadUnknown
from tests.filesweb import KEY, Store, Worker, file_gateway, jobs_of
from tests.unit.test_gateway import problem

FILE = {"file_name": "a.webm", "content_type": "video/webm", "size_bytes": 10}


@asynccontextmanager
async def serving(store: Store, relay: Relay | None = None) -> AsyncIterator[TestClient[web.Request, web.Application]]:
    limits = UploadLimits(file_bytes_max=1_000, parts_above_bytes=100, part_bytes=50, url_s=60)
    async with (
        jobs_of(Worker()) as jobs,
        TestClient(TestServer(file_gateway(store, jobs, limits, relay, store_timeout_s=0.1))) as made,
    ):
        yield made


@pytest.fixture
def store() -> Store:
    return Store()


@pytest.fixture
async def client(store: Store) -> AsyncIterator[TestClient[web.Request, web.Application]]:
    async with serving(store) as made:
        yield made


@pytest.fixture
async def relaying(store: Store) -> AsyncIterator[TestClient[web.Request, web.Application]]:
    async with serving(store, Relay(stalled_s=0.2)) as made:
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
