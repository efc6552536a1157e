"""ClickHouse's HTTP interface over the embedded engine, as unmodified clients and curl speak it."""

from __future__ import annotations

import asyncio
import base64
import errno
import functools
import json
import secrets
import uuid
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from aiohttp import web

from compose.local.clickhouse_body import BodyRefused, spool
from compose.local.clickhouse_engine import Engine, EngineError, Work
from compose.local.clickhouse_query import SyntaxRefused, parse

# Held back until the answer is complete or has this size, so that an error in it is still a status code.
BUFFER_BYTES = 1 << 20
THREADS = 32
READ_CHUNK_BYTES = 1 << 18
#: A client that takes nothing of its answer for so long is given up, as ClickHouse does (`send_timeout`).
SEND_TIMEOUT_S = 300.0

NOT_IMPLEMENTED = 48
AUTHENTICATION_FAILED = 516
CANNOT_WRITE_TO_FILE = 75

# Parameters of the interface itself; every other one is a setting of this query.
_RESERVED = {
    "query", "database", "default_format", "user", "password", "quota_key", "query_id", "session_id", "session_timeout",
    "session_check", "close_session", "compress", "decompress", "buffer_size", "wait_end_of_query", "stacktrace", "role",
    "client_protocol_version",
}  # fmt: skip
_STATUS = {AUTHENTICATION_FAILED: 403, 60: 404, 81: 404, 47: 404, 46: 404, 115: 404, 73: 404, 62: 400, 27: 400, 26: 400,
           6: 400, 38: 400, 41: 400, 53: 400, 117: 400, 271: 400, 89: 400, 159: 408, NOT_IMPLEMENTED: 501}  # fmt: skip
_CONTENT_TYPES = {
    "tabseparated": "text/tab-separated-values; charset=UTF-8",
    "tsv": "text/tab-separated-values; charset=UTF-8",
    "csv": "text/csv; charset=UTF-8; header=absent",
    "csvwithnames": "text/csv; charset=UTF-8; header=present",
    "json": "application/json; charset=UTF-8",
    "jsoncompact": "application/json; charset=UTF-8",
    "jsoneachrow": "application/x-ndjson; charset=UTF-8",
    "native": "application/octet-stream",
    "rowbinary": "application/octet-stream",
    "arrow": "application/octet-stream",
    "arrowstream": "application/octet-stream",
    "parquet": "application/octet-stream",
}


@dataclass(frozen=True)
class Account:
    """Who may ask; an empty password lets everybody in."""

    user: str = "default"
    password: str = ""

    def admits(self, user: str, password: str) -> bool:
        """Whether these credentials are good."""
        same = secrets.compare_digest(user.encode(), self.user.encode())
        return not self.password or (secrets.compare_digest(password.encode(), self.password.encode()) and same)


def application(engine: Engine, account: Account, spool_folder: Path) -> web.Application:
    """The HTTP interface as an application; run it with `auto_decompress=False`, or bodies lose frames."""
    front = _Front(engine, account, spool_folder)
    app = web.Application()
    app.router.add_get("/ping", _ok)
    app.router.add_get("/replicas_status", _ok)
    app.router.add_route("*", "/", front.handle)
    return app


async def _ok(_: web.Request) -> web.Response:
    return web.Response(text="Ok.\n")


class _Front:
    def __init__(self, engine: Engine, account: Account, spool_folder: Path) -> None:
        self._engine = engine
        self._account = account
        self._spool_folder = spool_folder
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="query")

    async def handle(self, request: web.Request) -> web.StreamResponse:
        if request.method in ("GET", "HEAD") and "query" not in request.query:
            return await _ok(request)
        answer = _Answer(request, self._engine.timezone)
        body: IO[bytes] | None = None
        try:
            self._authenticate(request)
            _refuse_unsupported(request)
            parameters = dict(request.query)
            body = await self._text(request, parameters)
            work = _work(parameters, request.headers.get("X-ClickHouse-Format"), body)
            return await self._run(work, answer)
        except (SyntaxRefused, BodyRefused) as error:
            return answer.refuse(error.code, f"Code: {error.code}. DB::Exception: {error}.")
        except EngineError as error:
            return await answer.fail(error.code, str(error))
        except OSError as error:
            if isinstance(error, ConnectionError):
                return answer.gone()
            if error.errno != errno.ENOSPC:
                raise
            return answer.refuse(CANNOT_WRITE_TO_FILE, f"Code: 75. DB::Exception: {error}. (CANNOT_WRITE_TO_FILE)")
        finally:
            if body is not None:
                body.close()

    async def _text(self, request: web.Request, parameters: dict[str, str]) -> IO[bytes]:
        """The statement and its data: the `query` parameter, a line feed and the body, as ClickHouse joins them."""
        encoding = request.headers.get("Content-Encoding", "").strip().lower()
        chunks: AsyncIterator[bytes] = request.content.iter_chunked(READ_CHUNK_BYTES)
        if request.content_type == "multipart/form-data":
            parameters.update(await _form(request))
            chunks = _nothing()
        query = parameters.get("query", "").encode()
        return await spool(query + b"\n" if query else b"", chunks, encoding, self._spool_folder)

    def _authenticate(self, request: web.Request) -> None:
        if not self._account.admits(*_credentials(request)):
            raise EngineError(
                "Code: 516. DB::Exception: Authentication failed: password is incorrect, or there is no user with such "
                "name. (AUTHENTICATION_FAILED)",
                AUTHENTICATION_FAILED,
            )

    async def _run(self, work: Work, answer: _Answer) -> web.StreamResponse:
        loop = asyncio.get_running_loop()
        answer.format = work.format if work.statement.kind in ("read", "answer") else None

        def emit(piece: bytes) -> None:
            # From the query's thread; waits until the client has taken the piece, so a slow reader costs no memory.
            asyncio.run_coroutine_threadsafe(answer.send(piece), loop).result(SEND_TIMEOUT_S + 10)

        run = functools.partial(self._engine.run, work, emit)
        figures = await loop.run_in_executor(self._threads, run)
        return await answer.end(figures)


class _Answer:
    """One answer: buffered at first, then streamed; an exception becomes a status code or, too late for it, a cut."""

    def __init__(self, request: web.Request, timezone: str) -> None:
        self._request = request
        self._pieces: list[bytes] = []
        self._size = 0
        self._stream: web.StreamResponse | None = None
        self._tag = secrets.token_hex(8)
        self.format: str | None = None
        self._headers = {
            "X-ClickHouse-Query-Id": request.query.get("query_id") or str(uuid.uuid4()),
            "X-ClickHouse-Timezone": timezone,
            "X-ClickHouse-Server-Display-Name": "sluiceway-local",
        }

    async def send(self, piece: bytes) -> None:
        """Write with a deadline. Raises ConnectionError when the client is gone, or takes nothing."""
        try:
            async with asyncio.timeout(SEND_TIMEOUT_S):
                await self.write(piece)
        except TimeoutError:
            if self._request.transport is not None:
                self._request.transport.abort()
            raise ConnectionAbortedError(f"the client took nothing for {SEND_TIMEOUT_S:g} s") from None

    async def write(self, piece: bytes) -> None:
        if self._stream is not None:
            await self._stream.write(piece)
            return
        self._pieces.append(piece)
        self._size += len(piece)
        if self._size > BUFFER_BYTES:
            self._stream = web.StreamResponse(
                headers={**self._result_headers(), "X-ClickHouse-Exception-Tag": self._tag}
            )
            await self._stream.prepare(self._request)
            await self._stream.write(b"".join(self._pieces))
            self._pieces.clear()

    async def end(self, figures: dict[str, int]) -> web.StreamResponse:
        if self._stream is not None:
            await self._stream.write_eof()
            return self._stream
        names = ("read_rows", "read_bytes", "written_rows", "written_bytes", "result_rows")
        summary = json.dumps({name: str(figures.get(name, 0)) for name in names})
        headers = {**self._result_headers(), "X-ClickHouse-Summary": summary}
        return web.Response(body=b"".join(self._pieces), headers=headers)

    async def fail(self, code: int, message: str) -> web.StreamResponse:
        if self._stream is None:
            return self.refuse(code, message)
        text = message.encode() + b"\n"
        tag = self._tag.encode()
        note = b"\r\n__exception__\r\n%b\r\n%b%d %b\r\n__exception__\r\n" % (tag, text, len(text), tag)
        await self._stream.write(note)
        # Without the closing chunk no client can take this for a whole answer.
        if self._request.transport is not None:
            self._request.transport.close()
        return self._stream

    def refuse(self, code: int, message: str) -> web.Response:
        headers = {**self._headers, "X-ClickHouse-Exception-Code": str(code)}
        return web.Response(status=_STATUS.get(code, 500), text=message + "\n", headers=headers)

    def gone(self) -> web.StreamResponse:
        """The client went away while its answer was being written."""
        return self._stream or web.Response(status=499)

    def _result_headers(self) -> dict[str, str]:
        if self.format is None:
            return {**self._headers, "Content-Type": "text/plain; charset=UTF-8"}
        kind = _CONTENT_TYPES.get(self.format.lower(), "text/plain; charset=UTF-8")
        return {**self._headers, "X-ClickHouse-Format": self.format, "Content-Type": kind}


def _refuse_unsupported(request: web.Request) -> None:
    if request.query.get("decompress", "0") != "0" or request.query.get("compress", "0") != "0":
        raise BodyRefused(
            NOT_IMPLEMENTED, "compress and decompress are not supported by the local stack, Content-Encoding is"
        )


def _credentials(request: web.Request) -> tuple[str, str]:
    """User and password from whichever of ClickHouse's three places they are in."""
    if "X-ClickHouse-User" in request.headers or "X-ClickHouse-Key" in request.headers:
        return request.headers.get("X-ClickHouse-User", "default"), request.headers.get("X-ClickHouse-Key", "")
    scheme, _, value = request.headers.get("Authorization", "").partition(" ")
    if scheme.lower() == "basic":
        try:
            user, _, password = base64.b64decode(value).decode().partition(":")
        except ValueError:
            return "", ""
        return user or "default", password
    return request.query.get("user", "default"), request.query.get("password", "")


async def _form(request: web.Request) -> dict[str, str]:
    fields = {}
    for name, value in (await request.post()).items():
        if not isinstance(value, str):
            raise BodyRefused(NOT_IMPLEMENTED, "External data is not supported by the local stack. (NOT_IMPLEMENTED)")
        fields[name] = value
    return fields


async def _nothing() -> AsyncIterator[bytes]:
    return
    yield b""


def _work(parameters: dict[str, str], header_format: str | None, text: IO[bytes]) -> Work:
    statement = parse(text)
    if statement.data_at is not None:
        text.seek(statement.data_at)
    return Work(
        statement,
        statement.format or parameters.get("default_format") or header_format or "TabSeparated",
        text,
        settings={k: v for k, v in parameters.items() if k not in _RESERVED and not k.startswith("param_")},
        parameters={k.removeprefix("param_"): v for k, v in parameters.items() if k.startswith("param_")},
        database=parameters.get("database", ""),
        session=parameters.get("session_id", ""),
    )
