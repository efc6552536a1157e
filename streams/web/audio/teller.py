"""What a client is told of its session: always the newest numbers, never a queue of old ones."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from contextlib import suppress

from aiohttp import WSCloseCode

from streams.web.audio.parts import AnyWire, SocketLimits, SocketParts
from streams.web.metrics import AudioMetrics
from topics.audio_socket import (
    ClosedMessage,
    DurableMessage,
    ErrorCode,
    ErrorMessage,
    ResumeMessage,
    ServerMessage,
    StoredMessage,
    encode_message,
)

CLOSE_CODES = {
    ErrorCode.BAD_MESSAGE: WSCloseCode.INVALID_TEXT,
    ErrorCode.TOO_LARGE: WSCloseCode.MESSAGE_TOO_BIG,
    ErrorCode.REFUSED: WSCloseCode.TRY_AGAIN_LATER,
    ErrorCode.UNAVAILABLE: WSCloseCode.TRY_AGAIN_LATER,
    ErrorCode.IDLE: WSCloseCode.GOING_AWAY,
}
#: Errors of single chunks that wait to be told; further ones are only counted.
_BAD_CHUNKS_MAX = 50


class Teller:
    """Writes to one client. `over` is set when nothing more is to be said; `settled` waits for what Kafka still has to
    confirm."""

    def __init__(
        self,
        wire: AnyWire,
        limits: SocketLimits,
        metrics: AudioMetrics,
        over: asyncio.Event,
        settled: Callable[[], Awaitable[None]],
    ) -> None:
        self._wire = wire
        self._limits = limits
        self._metrics = metrics
        self._over = over
        self._settled = settled
        self._news = asyncio.Event()
        self._resume: int | None = None
        self._resumed = False
        self._saying = False
        self._durable: int | None = None
        self._stored: int | None = None
        self._stored_told = -1
        self._bad: deque[ErrorMessage] = deque(maxlen=_BAD_CHUNKS_MAX)
        self.closed: ClosedMessage | None = None
        self.ending: ErrorMessage | None = None

    def resume(self, seq: int) -> None:
        """Send from this seq. Nothing but errors precedes it."""
        self._resume = seq
        self._news.set()

    def durable(self, seq: int) -> None:
        """Kafka holds all up to it."""
        if self._idle and self._wire.offer(encode_message(DurableMessage(seq))):
            return
        self._durable = seq
        self._news.set()

    def stored(self, seq: int | None) -> None:
        """The object store holds all up to it."""
        if seq is not None and seq > self._stored_told:
            self._stored_told = self._stored = seq
            self._news.set()

    def bad(self, error: ErrorMessage) -> None:
        """A chunk was not taken."""
        self._metrics.errors.labels(error.code).inc()
        self._bad.append(error)
        self._news.set()

    def close(self, closed: ClosedMessage) -> None:
        """The session is over, and with it the connection."""
        self.closed = closed
        self._news.set()

    def end(self, error: ErrorMessage) -> None:
        """Say why, and close the connection; the first reason counts."""
        if self.ending is not None or self._over.is_set():
            return
        self.ending = error
        self._metrics.errors.labels(error.code).inc()
        if error.code is ErrorCode.REFUSED:
            self._metrics.refused.inc()
        self._over.set()
        self._news.set()

    async def run(self) -> None:
        """Tell what there is to tell until the connection is closed."""
        try:
            while True:
                await self._news.wait()
                self._news.clear()
                ending = self.ending
                if ending is not None and ending.code not in (ErrorCode.REPLACED, ErrorCode.UNAVAILABLE):
                    await self._settled()
                # What is offered past it meanwhile would be overtaken by the older number.
                self._saying = True
                for message in self._take():
                    await self._say(message)
                    if isinstance(message, ClosedMessage):
                        self._over.set()
                        await self._wire.close(WSCloseCode.OK, "closed")
                        return
                if ending is not None:
                    await self._say(ending)
                    code = CLOSE_CODES.get(ending.code, WSCloseCode.POLICY_VIOLATION)
                    await self._wire.close(code, ending.code)
                    return
                self._saying = False
                await asyncio.sleep(self._limits.durable_every_s)
        except (ConnectionError, TimeoutError) as error:
            if isinstance(error, TimeoutError):
                self._metrics.errors.labels("not_reading").inc()
            self._over.set()
            self._wire.abort()

    @property
    def _idle(self) -> bool:
        """Whether nothing else is being said, or waits to be."""
        return self._resumed and not (self._saying or self._news.is_set() or self._over.is_set())

    def _take(self) -> list[ServerMessage]:
        """The messages, in their order."""
        found: list[ServerMessage] = []
        if self._resume is not None:
            found.append(ResumeMessage(self._resume))
            self._resume, self._resumed = None, True
        while self._bad:
            found.append(self._bad.popleft())
        if not self._resumed:
            return found
        if self._durable is not None:
            found.append(DurableMessage(self._durable))
        if self._stored is not None:
            found.append(StoredMessage(self._stored))
        self._durable = self._stored = None
        if self.closed is not None:
            found.append(self.closed)
        return found

    async def _say(self, message: ServerMessage) -> None:
        async with asyncio.timeout(self._limits.write_s):
            await self._wire.send(encode_message(message))


async def turn_away(wire: AnyWire, parts: SocketParts) -> None:
    """Say to one client too many that it is, and close."""
    parts.metrics.errors.labels("too_many").inc()
    said = (
        f"this gateway has {parts.seats.capacity} audio connections, as many as it takes: connect to another one, or again "
        "later"
    )
    with suppress(ConnectionError, TimeoutError):
        async with asyncio.timeout(parts.limits.write_s):
            await wire.send(encode_message(ErrorMessage(ErrorCode.UNAVAILABLE, said)))
            await wire.close(CLOSE_CODES[ErrorCode.UNAVAILABLE], "too_many")
