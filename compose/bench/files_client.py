"""A client of the file endpoints: one file of random bytes, straight to the store or through the gateway."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
from yarl import URL

from compose.bench.result import BenchFailed

_BLOCK = os.urandom(1 << 18)
_TYPE = "video/webm"
#: PUTs of one file at once, as a browser would.
_PUTS = 3
_COMPLETES = 60
_PAUSE_S = 0.5


class Client:
    """Uploads to the gateway at `url`. All methods raise BenchFailed for a refusal, aiohttp.ClientError for a lost line."""

    def __init__(self, session: aiohttp.ClientSession, url: str) -> None:
        self._session = session
        self._url = url

    async def direct(self, size_bytes: int) -> str:
        """By presigned URL: ask where to, PUT there, in parts if it is large, and say that it is done; the object's key."""
        wanted = {"file_name": "bench.webm", "content_type": _TYPE, "size_bytes": size_bytes}
        upload = await self._post("/api/uploads", wanted)
        done: dict[str, Any] = {"key": upload["key"]}
        if "parts" in upload:
            puts, part_bytes = asyncio.Semaphore(_PUTS), upload["part_size"]

            async def put_part(number: int, url: str) -> dict[str, Any]:
                async with puts:
                    etag = await self._put(url, {}, min(part_bytes, size_bytes - (number - 1) * part_bytes))
                return {"part_number": number, "etag": etag}

            parts = [put_part(part["part_number"], part["upload_url"]) for part in upload["parts"]]
            done |= {"upload_id": upload["upload_id"], "parts": await asyncio.gather(*parts)}
        else:
            await self._put(upload["upload_url"], upload["headers"], size_bytes)
        stored = await self._post("/api/uploads/complete", done)
        return _checked(stored["key"], stored["size_bytes"], size_bytes)

    async def relay(self, size_bytes: int) -> str:
        """Through the gateway; the object's key."""
        headers = {"Content-Type": _TYPE, "Content-Length": str(size_bytes)}
        url = f"{self._url}/api/relay?file_name=bench.webm"
        async with self._session.post(url, data=_body(size_bytes), headers=headers) as answer:
            found = await _read(answer, "a relay")
        return _checked(found["key"], found["bytes"], size_bytes)

    async def _put(self, url: str, headers: dict[str, str], size_bytes: int) -> str:
        length = {"Content-Length": str(size_bytes)}
        async with self._session.put(
            URL(url, encoded=True), data=_body(size_bytes), headers=headers | length
        ) as answer:
            if answer.status != 200:
                raise BenchFailed(f"the store answered a PUT with {answer.status}: {(await answer.text())[:300]}")
            return answer.headers.get("ETag", "")

    async def _post(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        # A store that joins a large file takes longer than the gateway waits for it, and is asked again.
        for left in reversed(range(_COMPLETES)):
            async with self._session.post(self._url + path, json=body) as answer:
                if answer.status != 503 or not left:
                    return await _read(answer, path)
            await asyncio.sleep(_PAUSE_S)
        raise AssertionError


async def _body(size_bytes: int) -> AsyncIterator[memoryview | bytes]:
    for at in range(0, size_bytes, len(_BLOCK)):
        left = size_bytes - at
        yield _BLOCK if left >= len(_BLOCK) else memoryview(_BLOCK)[:left]


async def _read(answer: aiohttp.ClientResponse, what: str) -> dict[str, Any]:
    said = await answer.text()
    if answer.status != 200:
        raise BenchFailed(f"{what} was answered with {answer.status}: {said[:300]}")
    found: dict[str, Any] = json.loads(said)
    return found


def _checked(key: str, stored_bytes: int, size_bytes: int) -> str:
    if stored_bytes != size_bytes:
        raise BenchFailed(f"the store has {stored_bytes:,} bytes of {key}, and {size_bytes:,} were sent")
    return key
