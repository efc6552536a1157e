"""A TCP proxy that fails on purpose: it refuses connections, cuts requests while they are sent, and loses answers."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Coroutine
from dataclasses import dataclass
from types import TracebackType
from typing import Any


@dataclass
class _Cut:
    """Connections that send `marker` are cut, `times` of them: after so many bytes of the request or of the answer."""

    direction: str
    after_bytes: int
    times: int
    marker: bytes


class FaultProxy:
    """Stands on a free port of 127.0.0.1 before `target_port`. Every method may be called from any thread."""

    def __init__(self, target_port: int) -> None:
        self.cuts = 0
        self._target_port = target_port
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port: int = free.getsockname()[1]
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="fault-proxy", daemon=True)
        self._server: asyncio.Server | None = None
        self._open: set[asyncio.StreamWriter] = set()
        self._served: set[asyncio.Task[None]] = set()
        self._cut: _Cut | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def __enter__(self) -> FaultProxy:
        self._thread.start()
        self.serve()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.refuse()
        self._call(self._drain())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        assert not self._thread.is_alive(), "the proxy does not end"
        self._loop.close()

    def serve(self) -> None:
        """Pass everything on."""
        self._cut = None
        self._call(self._listen())

    def refuse(self) -> None:
        """Break what is connected and refuse what wants to connect, as a server that is down."""
        self._call(self._close())

    def cut_requests(self, after_bytes: int, times: int = 1, marker: bytes = b"INSERT") -> None:
        """Break a connection once `after_bytes` of a request with `marker` were passed on."""
        self._cut = _Cut("request", after_bytes, times, marker)

    def cut_answers(self, after_bytes: int = 0, times: int = 1, marker: bytes = b"INSERT") -> None:
        """Break a connection when `after_bytes` of the answer to a request with `marker` were passed on: it was served,
        and its client does not know."""
        self._cut = _Cut("answer", after_bytes, times, marker)

    def _call(self, work: Coroutine[Any, Any, None]) -> None:
        asyncio.run_coroutine_threadsafe(work, self._loop).result(10)

    async def _listen(self) -> None:
        if self._server is None:
            self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port, limit=1 << 20)

    async def _close(self) -> None:
        if self._server is not None:
            self._server.close()
            self._server = None
        for writer in list(self._open):
            writer.transport.abort()

    async def _drain(self) -> None:
        await asyncio.gather(*self._served, return_exceptions=True)

    async def _serve(self, client: asyncio.StreamReader, to_client: asyncio.StreamWriter) -> None:
        try:
            server, to_server = await asyncio.open_connection("127.0.0.1", self._target_port)
        except OSError:
            to_client.transport.abort()
            return
        pair = _Pair(self, to_client, to_server)
        task = asyncio.current_task()
        assert task is not None
        self._open |= {to_client, to_server}
        self._served.add(task)
        await asyncio.gather(pair.pass_requests(client), pair.pass_answers(server))
        self._open -= {to_client, to_server}
        self._served.discard(task)

    def cut_due(self, direction: str, head: bytes) -> _Cut | None:
        """The cut that waits for what goes this way after a request that begins with `head`."""
        cut = self._cut
        due = cut is not None and cut.direction == direction and cut.times > 0 and cut.marker in head
        return cut if due else None

    def count_cut(self) -> None:
        """A cut was made."""
        assert self._cut is not None
        self._cut.times -= 1
        self.cuts += 1


class _Pair:
    """A client's connection and the one to the server behind it. Both end together."""

    def __init__(self, proxy: FaultProxy, to_client: asyncio.StreamWriter, to_server: asyncio.StreamWriter) -> None:
        self._proxy = proxy
        self._to_client = to_client
        self._to_server = to_server
        self._head = b""
        self._passed = {"request": 0, "answer": 0}

    async def pass_requests(self, client: asyncio.StreamReader) -> None:
        await self._pass(client, self._to_server, "request")

    async def pass_answers(self, server: asyncio.StreamReader) -> None:
        await self._pass(server, self._to_client, "answer")

    async def _pass(self, source: asyncio.StreamReader, to: asyncio.StreamWriter, direction: str) -> None:
        try:
            while data := await source.read(65_536):
                if direction == "request" and data.startswith((b"POST ", b"GET ", b"PUT ", b"HEAD ")):
                    # A connection that is kept alive carries many requests.
                    self._head, self._passed = data[:4096], {"request": 0, "answer": 0}
                room = self._room(direction)
                to.write(data[:room])
                await to.drain()
                self._passed[direction] += len(data)
                if room is not None and room < len(data):
                    self._proxy.count_cut()
                    break
        except OSError:
            pass
        self._to_client.transport.abort()
        self._to_server.transport.abort()

    def _room(self, direction: str) -> int | None:
        """How many more bytes may pass; None for all."""
        cut = self._proxy.cut_due(direction, self._head)
        return None if cut is None else max(0, cut.after_bytes - self._passed[direction])
