"""Uploads as a client makes them: what the gateway says, done by plain HTTP against every S3 server."""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest
from aiohttp import ClientSession, web
from aiohttp.client import URL
from aiohttp.test_utils import TestClient, TestServer

from compose.gateway_files import BucketFiles
from sinks.objects import PART_BYTES_MIN, Bucket
from sinks.presign import Presigner
from streams.web.files.parts import Relay, UploadLimits
from tests.filesweb import Worker, file_gateway, jobs_of
from tests.objectstores import ObjectStore

pytestmark = pytest.mark.stack

Client = TestClient[web.Request, web.Application]
DATA = hashlib.shake_128(b"upload").digest(2 * PART_BYTES_MIN + 333)
WEBM = "video/webm"


@pytest.fixture
async def gateway(bucket: Bucket) -> AsyncIterator[Client]:
    store = BucketFiles(bucket, Presigner(bucket))
    limits = UploadLimits(parts_above_bytes=1 << 20, part_bytes=PART_BYTES_MIN)
    async with jobs_of(Worker()) as jobs, TestClient(TestServer(file_gateway(store, jobs, limits, Relay()))) as client:
        yield client


@pytest.fixture
async def http() -> AsyncIterator[ClientSession]:
    async with ClientSession() as session:
        yield session


async def _begin(gateway: Client, name: str, size_bytes: int) -> Any:
    body = {"file_name": name, "content_type": WEBM, "size_bytes": size_bytes}
    answer = await gateway.post("/api/uploads", json=body)
    assert answer.status == 200, await answer.text()
    return await answer.json()


async def _put(http: ClientSession, url: str, data: bytes, headers: dict[str, str]) -> tuple[int, str]:
    async with http.put(URL(url, encoded=True), data=data, headers=headers) as answer:
        return answer.status, answer.headers.get("ETag", "")


async def _complete(gateway: Client, **body: Any) -> tuple[int, Any]:
    answer = await gateway.post("/api/uploads/complete", json=body)
    return answer.status, await answer.json(content_type=None)


async def test_a_small_file_goes_up_as_it_was_said_to_be(gateway: Client, http: ClientSession, bucket: Bucket) -> None:
    data = DATA[:1_000]
    upload = await _begin(gateway, "../Übung '1'.webm", len(data))
    assert (await _complete(gateway, key=upload["key"]))[0] == 404
    for wrong, headers in ((data, {"Content-Type": "text/html"}), (data + b"x", upload["headers"])):
        assert (await _put(http, upload["upload_url"], wrong, headers))[0] == 403
    assert (await _put(http, upload["upload_url"], data, upload["headers"]))[0] == 200
    status, stored = await _complete(gateway, key=upload["key"])
    assert (status, stored["size_bytes"], stored["etag"]) == (200, len(data), hashlib.md5(data).hexdigest())
    assert await bucket.get(upload["key"]) == data


async def test_a_large_file_goes_up_in_parts(gateway: Client, http: ClientSession, bucket: Bucket) -> None:
    upload = await _begin(gateway, "large.webm", len(DATA))
    size = upload["part_size"]
    etags = []
    for part in upload["parts"]:
        number = part["part_number"]
        piece = DATA[(number - 1) * size : number * size]
        assert (await _put(http, part["upload_url"], piece + b"x", {}))[0] == 403
        status, etag = await _put(http, part["upload_url"], piece, {})
        assert status == 200
        etags.append({"part_number": number, "etag": etag})
    done = {"key": upload["key"], "upload_id": upload["upload_id"], "parts": etags}
    for _ in range(2):
        status, stored = await _complete(gateway, **done)
        assert (status, stored["size_bytes"]) == (200, len(DATA))
    assert await bucket.get(upload["key"]) == DATA
    found = await bucket.head(upload["key"])
    assert found is not None and found.content_type == WEBM


async def test_a_file_that_lacks_parts_is_none(gateway: Client, http: ClientSession, bucket: Bucket) -> None:
    upload = await _begin(gateway, "short.webm", len(DATA))
    _, etag = await _put(http, upload["parts"][0]["upload_url"], DATA[: upload["part_size"]], {})
    done = {"key": upload["key"], "upload_id": upload["upload_id"], "parts": [{"part_number": 1, "etag": etag}]}
    status, told = await _complete(gateway, **done)
    assert (status, "parts are missing" in told["detail"]) == (409, True)
    assert await bucket.head(upload["key"]) is None
    assert (await _complete(gateway, **done))[0] == 404


async def test_a_file_is_relayed_in_parts_and_one_that_breaks_off_leaves_nothing(
    gateway: Client, bucket: Bucket
) -> None:
    before = [found.key async for found in bucket.list("uploads/")]
    for size in (1_000, PART_BYTES_MIN, len(DATA)):
        answer = await gateway.post("/api/relay?file_name=a.webm", data=DATA[:size], headers={"Content-Type": WEBM})
        told = await answer.json()
        assert (answer.status, told["bytes"]) == (200, size), told
        assert await bucket.get(told["key"]) == DATA[:size]
        await bucket.delete_many([told["key"]])
    _, writer = await asyncio.open_connection(gateway.host, gateway.port)
    head = f"POST /api/relay?file_name=a HTTP/1.1\r\nHost: x\r\nContent-Length: {len(DATA)}\r\n\r\n"
    writer.write(head.encode() + DATA[: PART_BYTES_MIN + 1])
    await writer.drain()
    async with asyncio.timeout(10):
        while not [upload async for upload in bucket.list_uploads("uploads/")]:  # noqa: ASYNC110
            await asyncio.sleep(0.05)
        writer.close()
        while [upload async for upload in bucket.list_uploads("uploads/")]:  # noqa: ASYNC110
            await asyncio.sleep(0.05)
    assert [found.key async for found in bucket.list("uploads/")] == before


async def test_a_relay_that_breaks_off_while_its_upload_begins_leaves_nothing(
    gateway: Client, bucket: Bucket, store: ObjectStore
) -> None:
    """The client goes when the store has begun the upload, and before the gateway knows."""
    loop = asyncio.get_running_loop()
    _, writer = await asyncio.open_connection(gateway.host, gateway.port)

    def go() -> None:
        loop.call_soon_threadsafe(writer.close)
        time.sleep(0.5)

    store.proxy.then("CreateMultipartUpload", go)
    head = f"POST /api/relay?file_name=a HTTP/1.1\r\nHost: x\r\nContent-Length: {len(DATA)}\r\n\r\n"
    writer.write(head.encode() + DATA[: PART_BYTES_MIN + 1])
    async with asyncio.timeout(10):
        while not store.proxy.count("AbortMultipartUpload"):  # noqa: ASYNC110
            await asyncio.sleep(0.05)
        while [upload async for upload in bucket.list_uploads("uploads/")]:  # noqa: ASYNC110
            await asyncio.sleep(0.05)
