"""Bytes between disk and store, by presigned URL: never a whole file in memory, never longer than allowed."""

from __future__ import annotations

import asyncio
import hashlib
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, TypeVar

import aiohttp
from yarl import URL

from compose.converter.foreign import found
from streams.files.converting import CACHE_CONTROL, ConversionFailed, ConvertRequest
from streams.runtime.addresses import Network
from topics.files import SentPart

T = TypeVar("T")
OnShare = Callable[[float], None]

BLOCK_BYTES = 256 << 10
#: A store, or a proxy before it, that does not answer `Expect: 100-continue` for so long is sent the bytes without.
CONTINUE_S = 5.0
_ATTEMPTS = 6
_TIMEOUTS = aiohttp.ClientTimeout(total=None, sock_connect=10.0, sock_read=60.0)


class _Passing(Exception):
    """A failure that may be gone when it is tried again."""


async def fetch(
    url: str, to: Path, bytes_max: int, within_s: float, on_share: OnShare, foreign: Sequence[Network] | None = None
) -> int:
    """Write what a URL gives to a file; returns its size. One that is `foreign` is asked for at public addresses only, and
    these networks. Raises ConversionFailed."""

    async def attempt() -> int:
        async with _asked("GET", url) if foreign is None else _found(url, foreign) as answer:
            if answer.status != 200:
                raise _refusal("source", answer.status) if foreign is None else _foreign_refusal(answer.status)
            wanted = answer.content_length
            if wanted is not None and wanted > bytes_max:
                raise _too_large(bytes_max)
            size = 0
            with to.open("wb") as file:
                async for block in answer.content.iter_chunked(BLOCK_BYTES):
                    size += len(block)
                    if size > bytes_max:
                        raise _too_large(bytes_max)
                    await asyncio.to_thread(file.write, block)
                    on_share(size / wanted if wanted else 0.0)
            if wanted is not None and size != wanted:
                raise _Passing(f"it ended after {size:,} of {wanted:,} bytes")
            return size

    async with _within(within_s, "source", "the source did not arrive"):
        return await _tried("source", attempt)


async def upload(
    request: ConvertRequest, file: Path, within_s: float, on_share: OnShare
) -> tuple[str, tuple[SentPart, ...]]:
    """Send a file to where the request says; returns its MD5 and the parts it went in, none if it went whole.

    Raises ConversionFailed: `again` is true of a URL that has expired too, as another attempt has another one.
    """
    size = file.stat().st_size
    async with _within(within_s, "upload", "the result was not uploaded"):
        if request.parts and size > request.part_size:
            parts = await _put_parts(request, file, size, on_share)
            return await asyncio.to_thread(_md5, file), parts
        # Not bound by the signature, which whoever else converts may not know of.
        headers = {"Content-Type": request.content_type, "Cache-Control": CACHE_CONTROL}
        headers |= {f"x-amz-meta-{name}": value for name, value in request.metadata.items()}
        put = _Put(request.upload_url, file, 0, size, headers, on_share)
        return await _tried("upload", put.send), ()


async def _put_parts(request: ConvertRequest, file: Path, size: int, on_share: OnShare) -> tuple[SentPart, ...]:
    """One after the other: a part that is there is not sent again."""
    length = request.part_size
    count = -(-size // length)
    if count > len(request.parts):
        raise ConversionFailed("result_too_large", f"the result's {size:,} bytes are too many for its upload")
    sent: list[SentPart] = []
    for number, url in enumerate(request.parts[:count]):

        def on_part(part: float, done: int = number) -> None:
            on_share((done + part) / count)

        put = _Put(url, file, number * length, min(length, size - number * length), {}, on_part)
        sent.append(SentPart(number + 1, await _tried("upload", put.send)))
    return tuple(sent)


class _Put:
    """`size` bytes of a file from `start` on, to be sent to a URL."""

    def __init__(
        self, url: str, file: Path, start: int, size: int, headers: Mapping[str, str], on_share: OnShare
    ) -> None:
        self._url = url
        self._file = file
        self._start = start
        self._size = size
        self._headers = {**headers, "Content-Length": str(size)}
        self._on_share = on_share
        # A store that refuses the URL is heard before the bytes are on their way.
        self._expect = True

    async def send(self) -> str:
        """Send them; returns their MD5, which the store has confirmed."""
        sum_ = hashlib.md5(usedforsecurity=False)
        try:
            async with asyncio.timeout(CONTINUE_S if self._expect else None) as silence:
                etag = await self._put(sum_, silence)
        except TimeoutError:
            self._expect = False
            raise _Passing(f"it does not say within {CONTINUE_S:g} s whether it wants the bytes") from None
        if etag != sum_.hexdigest():
            raise _Passing(f"the store received something else: its ETag is {etag[:60]!r}")
        return str(sum_.hexdigest())

    async def _put(self, sum_: Any, silence: asyncio.Timeout) -> str:
        """Returns the ETag. There is no silence any more once the first bytes are wanted."""
        arguments = {"data": self._blocks(sum_, silence), "headers": self._headers, "expect100": self._expect}
        async with _asked("PUT", self._url, **arguments) as answer:
            if answer.status != 200:
                raise _refusal("upload", answer.status)
            return answer.headers.get("ETag", "").strip('"')

    async def _blocks(self, sum_: Any, silence: asyncio.Timeout) -> AsyncIterator[bytes]:
        silence.reschedule(None)
        sent = 0
        with self._file.open("rb") as file:
            file.seek(self._start)
            while sent < self._size:
                block = await asyncio.to_thread(file.read, min(BLOCK_BYTES, self._size - sent))
                assert block, "the result became shorter while it was uploaded"
                sum_.update(block)
                sent += len(block)
                yield block
                self._on_share(sent / self._size)


@asynccontextmanager
async def _asked(method: str, url: str, **arguments: Any) -> AsyncIterator[aiohttp.ClientResponse]:
    """One request. No redirect is followed: a presigned URL leads to the store itself. Messages never hold the URL."""
    try:
        async with (
            aiohttp.ClientSession(timeout=_TIMEOUTS, auto_decompress=False) as session,
            session.request(method, URL(url, encoded=True), allow_redirects=False, **arguments) as answer,
        ):
            yield answer
    except (aiohttp.ClientError, ConnectionError) as error:
        raise _Passing(f"the store does not answer ({type(error).__name__})") from None


@asynccontextmanager
async def _found(url: str, allowed: Sequence[Network]) -> AsyncIterator[aiohttp.ClientResponse]:
    try:
        async with found(url, allowed, _TIMEOUTS) as answer:
            yield answer
    except (aiohttp.ClientError, ConnectionError) as error:
        raise _Passing(f"its server does not answer ({type(error).__name__})") from None


def _foreign_refusal(status: int) -> Exception:
    if status >= 500 or status in (408, 429):
        return _Passing(f"its server answers {status}")
    return ConversionFailed("source_refused", f"source: its server answers {status}")


def _refusal(what: str, status: int) -> Exception:
    """What an answer that is no 200 means."""
    if status >= 500 or status in (408, 429):
        return _Passing(f"the store answers {status}")
    if status == 404:
        again = what == "upload"
        return ConversionFailed(f"{what}_missing", f"{what}: the store has nothing at that address", again=again)
    return ConversionFailed(
        f"{what}_refused", f"{what}: the store refuses the URL ({status}); it may have expired", again=True
    )


def _too_large(bytes_max: int) -> ConversionFailed:
    return ConversionFailed("source_too_large", f"the source is larger than {bytes_max:,} bytes")


async def _tried(what: str, attempt: Callable[[], Awaitable[T]]) -> T:
    for failures in range(1, _ATTEMPTS + 1):
        try:
            return await attempt()
        except _Passing as error:
            if failures == _ATTEMPTS:
                raise ConversionFailed(f"{what}_failed", f"{what}: {error}", again=True) from None
            await asyncio.sleep(random.uniform(0, min(10.0, 0.2 * 2.0**failures)))
    raise AssertionError("unreachable")


@asynccontextmanager
async def _within(seconds: float, what: str, late: str) -> AsyncIterator[None]:
    """On one clock: all parts and attempts together."""
    try:
        async with asyncio.timeout(seconds):
            yield
    except TimeoutError:
        raise ConversionFailed(f"{what}_timeout", f"{late} within {seconds:g} s", again=True) from None


def _md5(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
