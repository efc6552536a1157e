"""Looks at the time of one connection: pings, silence, and an end that nobody told."""

from __future__ import annotations

import asyncio
import time
from typing import Protocol

import structlog

from streams.web.audio.parts import AnyWire, SocketLimits
from streams.web.metrics import AudioMetrics
from topics.audio import Open
from topics.audio_socket import ErrorCode

_WATCH_S = 1.0
_ASK_CLOSED_S = 5.0

log = structlog.get_logger(__name__)


class Watched(Protocol):
    """The conversation, as far as time matters to it. `heard_s` is when the last chunk came; `reading` is False while the
    reader waits for Kafka."""

    session_id: str
    wire: AnyWire
    limits: SocketLimits
    over: asyncio.Event
    opened: Open | None
    closing: bool
    reading: bool
    heard_s: float

    @property
    def begun(self) -> bool:
        """Whether the client was told from where to send."""

    def end(self, code: ErrorCode, message: str) -> None:
        """Say why, and close."""

    async def ask_whether_closed(self) -> None:
        """Ask the session's owner whether it is over."""


async def watch(talk: Watched, metrics: AudioMetrics) -> None:
    """Ping, and end what is silent, until the connection is over."""
    limits = talk.limits
    pinged_s = asked_s = started_s = time.monotonic()
    every_s = min(_WATCH_S, limits.ping_s / 2, limits.idle_s / 2)
    while not talk.over.is_set():
        await asyncio.sleep(every_s)
        now = time.monotonic()
        if talk.opened is None:
            if now - started_s > limits.resume_s:
                talk.end(ErrorCode.IDLE, f"no open came within {limits.resume_s:g} s")
        elif not talk.closing and now - talk.heard_s > limits.idle_s + limits.resume_s * (not talk.begun):
            talk.end(ErrorCode.IDLE, f"no chunk came for {limits.idle_s:g} s: connect again to go on")
        elif talk.closing and now - asked_s > _ASK_CLOSED_S:
            asked_s = now
            await talk.ask_whether_closed()
        if now - pinged_s > limits.ping_s:
            pinged_s = now
            await _ping(talk, metrics, now)


async def _ping(talk: Watched, metrics: AudioMetrics, now: float) -> None:
    since_s = talk.wire.pinged_s
    if since_s is not None and talk.reading and now - since_s > 2 * talk.limits.ping_s:
        metrics.errors.labels("no_pong").inc()
        log.info("audio_connection_dead", session=talk.session_id, silent_s=round(now - since_s, 1))
        talk.over.set()
        talk.wire.abort()
        return
    try:
        async with asyncio.timeout(talk.limits.write_s):
            await talk.wire.ping()
    except (ConnectionError, TimeoutError):
        talk.over.set()
        talk.wire.abort()
