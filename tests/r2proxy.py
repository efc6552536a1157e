"""An HTTP proxy before an S3 server: it counts what is asked, fails on purpose, and can be as strict as R2."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import re
import threading
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any

import aiohttp
from aiohttp import web
from yarl import URL

from compose.local.process import free_port
from sinks.objects import PART_BYTES_MIN, multipart_etag

_HOP_BY_HOP = {"connection", "expect", "keep-alive", "transfer-encoding"}


@dataclass(frozen=True)
class Seen:
    """A request: what it asks for, by the name that S3 gives it."""

    operation: str
    path: str
    part: int
    size_bytes: int
    headers: dict[str, str]


@dataclass
class _Fault:
    operation: str
    kind: str
    times: int
    seconds: float
    hook: Callable[[], object]


@dataclass
class _Refusal(Exception):
    status: int
    code: str
    message: str


@dataclass
class _Rules:
    """R2's rules, as its documentation and its users' reports have them; `parts` by upload and number: size and MD5."""

    parts: dict[tuple[str, int], tuple[int, str]] = field(default_factory=dict)
    # R2 answers S3's ETag of an object made of parts, the server behind this proxy may not.
    etags: dict[str, str] = field(default_factory=dict)

    def check(self, seen: Seen, upload_id: str, body: bytes) -> None:
        """Raise _Refusal for what R2 refuses."""
        for name, value in seen.headers.items():
            if name.startswith("x-amz-checksum-crc") or name in ("x-amz-trailer", "x-amz-sdk-checksum-algorithm"):
                raise _Refusal(501, "NotImplemented", f"Header '{name}' with value '{value}' not implemented")
        if (md5 := seen.headers.get("content-md5")) and base64.b64decode(md5) != hashlib.md5(body).digest():
            raise _Refusal(400, "BadDigest", "The Content-MD5 you specified did not match what we received.")
        if seen.operation == "UploadPart" and not 1 <= seen.part <= 10_000:
            raise _Refusal(400, "InvalidArgument", "Part number must be between 1 and 10000")
        if seen.operation == "CompleteMultipartUpload":
            self._check_parts(upload_id, body)

    def _check_parts(self, upload_id: str, body: bytes) -> None:
        named = _named(body)
        numbers = [number for number, _ in named]
        if numbers != sorted(set(numbers)):
            raise _Refusal(400, "InvalidPartOrder", "The list of parts was not in ascending order.")
        if any(self.parts.get((upload_id, number), (0, ""))[1] != etag for number, etag in named):
            raise _Refusal(400, "InvalidPart", "One or more of the specified parts could not be found.")
        sizes = [self.parts[upload_id, number][0] for number in numbers]
        if any(size < PART_BYTES_MIN for size in sizes[:-1]):
            raise _Refusal(
                400, "EntityTooSmall", "Your proposed upload is smaller than the minimum allowed object size."
            )
        if len(set(sizes[:-1])) > 1 or sizes[-1] > sizes[0]:
            raise _Refusal(400, "InvalidPart", "All non-trailing parts must have the same length.")

    def note(self, seen: Seen, upload_id: str, body: bytes) -> None:
        """A request was served."""
        if seen.operation == "UploadPart":
            self.parts[upload_id, seen.part] = (len(body), hashlib.md5(body).hexdigest())
        elif seen.operation == "CompleteMultipartUpload":
            self.etags[seen.path] = multipart_etag(etag for _, etag in _named(body))
        elif seen.operation in ("PutObject", "DeleteObject"):
            self.etags.pop(seen.path, None)


class R2Proxy:
    """Stands on a free port of 127.0.0.1 before `target_port`; the Host header passes, so that signatures hold.

    Every method may be called from any thread.
    """

    def __init__(self, target_port: int, *, strict: bool = False) -> None:
        self.port = free_port()
        self.seen: list[Seen] = []
        self._target_port = target_port
        self._rules = _Rules() if strict else None
        self._faults: list[_Fault] = []
        self._lost: set[str] = set()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="r2-proxy", daemon=True)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def __enter__(self) -> R2Proxy:
        self._thread.start()
        self._call(self._open())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._call(self._close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def reset(self) -> None:
        """Forget what was seen and which faults were to come."""
        self.seen.clear()
        self._faults.clear()

    def heal(self) -> None:
        """Serve everything from now on."""
        self._faults.clear()

    def count(self, operation: str) -> int:
        """How many such requests were seen."""
        return sum(seen.operation == operation for seen in self.seen)

    def parts(self) -> list[int]:
        """The numbers of the parts that were sent, in the order in which they came."""
        return [seen.part for seen in self.seen if seen.operation == "UploadPart"]

    def refuse(self, operation: str, times: int = 1) -> None:
        """Answer 503, and do nothing."""
        self._inject(operation, "refuse", times)

    def not_found(self, operation: str, times: int = 1) -> None:
        """Answer 404 with no code, as a wrong address does."""
        self._inject(operation, "not_found", times)

    def drop(self, operation: str, times: int = 1) -> None:
        """Break the connection before the request is served."""
        self._inject(operation, "drop", times)

    def lose_answer(self, operation: str, times: int = 1) -> None:
        """Serve the request, and break the connection instead of an answer."""
        self._inject(operation, "lose_answer", times)

    def slow(self, operation: str, seconds: float, times: int = 1) -> None:
        """Wait before the request is served."""
        self._inject(operation, "slow", times, seconds=seconds)

    def spoil(self, operation: str, times: int = 1) -> None:
        """Change a byte of the body on its way."""
        self._inject(operation, "spoil", times)

    def lose_upload(self, operation: str) -> None:
        """Answer NoSuchUpload, now and whenever the upload is named again."""
        self._inject(operation, "lose_upload", 1)

    def fail_keys(self, times: int = 1) -> None:
        """Answer a DeleteObjects that none of its keys could be removed for now, and do nothing."""
        self._inject("DeleteObjects", "fail_keys", times)

    def then(self, operation: str, hook: Callable[[], object]) -> None:
        """Serve the request, and call `hook` before it is answered."""
        self._inject(operation, "then", 1, hook=hook)

    def _inject(
        self, operation: str, kind: str, times: int, seconds: float = 0.0, hook: Callable[[], object] = bool
    ) -> None:
        self._faults.append(_Fault(operation, kind, times, seconds, hook))

    def _call(self, work: Coroutine[Any, Any, None]) -> None:
        asyncio.run_coroutine_threadsafe(work, self._loop).result(20)

    async def _open(self) -> None:
        self._session = aiohttp.ClientSession(
            auto_decompress=False, connector=aiohttp.TCPConnector(force_close=True), skip_auto_headers=_AUTO
        )
        app = web.Application(client_max_size=0)
        app.router.add_route("*", "/{path:.*}", self._serve)
        self._runner = web.AppRunner(app, auto_decompress=False, shutdown_timeout=1.0)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", self.port).start()

    async def _close(self) -> None:
        await self._runner.cleanup()
        await self._session.close()

    async def _serve(self, request: web.Request) -> web.StreamResponse:
        body = await request.read()
        seen = Seen(
            _operation(request),
            request.path,
            int(request.query.get("partNumber", 0)),
            len(body),
            {name.lower(): value for name, value in request.headers.items()},
        )
        self.seen.append(seen)
        try:
            return await self._answer(request, seen, body)
        except _Refusal as refusal:
            xml = f"<Error><Code>{refusal.code}</Code><Message>{refusal.message}</Message></Error>"
            return web.Response(status=refusal.status, text=xml, content_type="application/xml")
        except (aiohttp.ClientError, ConnectionError):
            return _broken(request)

    async def _answer(self, request: web.Request, seen: Seen, body: bytes) -> web.StreamResponse:
        fault = self._due(seen.operation)
        kind = fault.kind if fault else ""
        upload_id = request.query.get("uploadId", "")
        if kind == "lose_upload":
            self._lost.add(upload_id)
        if upload_id in self._lost:
            raise _Refusal(404, "NoSuchUpload", "The specified multipart upload does not exist.")
        if kind == "refuse":
            raise _Refusal(503, "SlowDown", "Reduce your request rate.")
        if kind == "not_found":
            return web.Response(status=404)
        if kind == "fail_keys":
            failed = b"".join(
                b"<Error>" + key + b"<Code>InternalError</Code><Message>Later.</Message></Error>"
                for key in re.findall(rb"<Key>.*?</Key>", body)
            )
            return web.Response(body=b"<DeleteResult>%s</DeleteResult>" % failed, content_type="application/xml")
        if kind == "drop":
            return _broken(request)
        if fault and kind == "slow":
            await asyncio.sleep(fault.seconds)
        if kind == "spoil":
            body = bytes([body[0] ^ 1]) + body[1:]
        answer = await self._checked(request, seen, upload_id, body)
        if kind == "lose_answer":
            return _broken(request)
        if fault and kind == "then":
            await asyncio.to_thread(fault.hook)
        return answer

    async def _checked(self, request: web.Request, seen: Seen, upload_id: str, body: bytes) -> web.Response:
        if self._rules is None:
            return await self._forward(request, body)
        self._rules.check(seen, upload_id, body)
        answer = await self._forward(request, body)
        if answer.status < 300:
            self._rules.note(seen, upload_id, body)
            etag = self._rules.etags.get(seen.path)
            if etag and seen.operation in ("HeadObject", "GetObject"):
                answer.headers["ETag"] = f'"{etag}"'
        return answer

    async def _forward(self, request: web.Request, body: bytes) -> web.Response:
        url = URL(f"http://127.0.0.1:{self._target_port}{request.raw_path}", encoded=True)
        headers = {name: value for name, value in request.headers.items() if name.lower() not in _HOP_BY_HOP}
        async with self._session.request(request.method, url, headers=headers, data=body or None) as answer:
            data = await answer.read()
            kept = {name: value for name, value in answer.headers.items() if name.lower() not in _HOP_BY_HOP}
            return web.Response(status=answer.status, headers=kept, body=None if request.method == "HEAD" else data)

    def _due(self, operation: str) -> _Fault | None:
        for fault in self._faults:
            if fault.operation == operation and fault.times > 0:
                fault.times -= 1
                return fault
        return None


_AUTO = ("User-Agent", "Accept", "Accept-Encoding", "Content-Type")

# By method and what the query names; of a path with no key, by the bucket's.
_OPERATIONS = {
    ("PUT", "partNumber"): "UploadPart",
    ("PUT", ""): "PutObject",
    ("POST", "uploads"): "CreateMultipartUpload",
    ("POST", "uploadId"): "CompleteMultipartUpload",
    ("POST", "delete"): "DeleteObjects",
    ("DELETE", "uploadId"): "AbortMultipartUpload",
    ("DELETE", ""): "DeleteObject",
    ("GET", "uploads"): "ListMultipartUploads",
    ("GET", "uploadId"): "ListParts",
    ("GET", "list-type"): "ListObjectsV2",
    ("GET", ""): "GetObject",
    ("HEAD", ""): "HeadObject",
}


def _operation(request: web.Request) -> str:
    for (method, query), operation in _OPERATIONS.items():
        if request.method == method and (not query or query in request.query):
            return operation
    return request.method


def _named(body: bytes) -> list[tuple[int, str]]:
    """The parts that a CompleteMultipartUpload names: numbers and ETags."""
    parts = re.findall(rb"<Part>(.*?)</Part>", body, re.DOTALL)
    number, etag = re.compile(rb"<PartNumber>(\d+)<"), re.compile(rb"([0-9a-f]{32})")
    return [(int(number.search(part)[1]), etag.search(part)[1].decode()) for part in parts]  # type: ignore[index]


def _broken(request: web.Request) -> web.Response:
    if request.transport is not None:
        request.transport.abort()
    return web.Response(status=500)
