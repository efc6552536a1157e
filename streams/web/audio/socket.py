"""One audio connection: open, resume, chunks, durable and stored, close, closed; and how each can go wrong.

Four tasks share it. The reader takes messages, and stops taking them while too much waits for Kafka. The sender hands
chunks to Kafka in their order, one group at a time. The writer tells the client how far it is: always the newest
numbers, never a queue of old ones. The watch pings and looks at the time.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

import structlog
from aiohttp import WSCloseCode

from streams.web.audio.durable import Durable
from streams.web.audio.hub import Hub
from streams.web.audio.owner import SessionOwner, SessionState
from streams.web.metrics import AudioMetrics
from streams.web.owner import OwnerAway
from streams.web.publisher import HeadedRecord, Place, PublishUnavailable
from topics import audio
from topics.audio import Chunk, Close, Open, misfit
from topics.audio_events import AudioEvent, SegmentStored, SessionClosed, SessionOpened, SessionRefused, SessionResumed
from topics.audio_socket import (
    ClosedMessage,
    CloseMessage,
    DurableMessage,
    ErrorCode,
    ErrorMessage,
    OpenMessage,
    ResumeMessage,
    ServerMessage,
    StoredMessage,
    decode_client_message,
    decode_frame,
    encode_message,
)
from topics.ids import ID_RULE, valid_id
from topics.malformed import Malformed

CLOSE_CODES = {
    ErrorCode.BAD_MESSAGE: WSCloseCode.INVALID_TEXT,
    ErrorCode.TOO_LARGE: WSCloseCode.MESSAGE_TOO_BIG,
    ErrorCode.REFUSED: WSCloseCode.TRY_AGAIN_LATER,
    ErrorCode.UNAVAILABLE: WSCloseCode.TRY_AGAIN_LATER,
    ErrorCode.IDLE: WSCloseCode.GOING_AWAY,
}
#: Errors of single chunks that wait to be told; further ones are only counted.
_BAD_CHUNKS_MAX = 50
#: Bytes that go to Kafka in one group.
_GROUP_BYTES = 256 << 10
_WATCH_S = 1.0
_ASK_CLOSED_S = 5.0

log = structlog.get_logger(__name__)


class AudioLog(Protocol):
    """Where chunks go."""

    async def append(self, records: Sequence[HeadedRecord]) -> Place:
        """Return once Kafka holds every record, in their order: where the first lies. Raises PublishUnavailable."""


class AnyWire(Protocol):
    """The connection; see `Wire`."""

    pinged_s: float | None
    too_large: bool

    async def receive(self) -> bytes | str | None:
        """See `Wire`."""

    async def send(self, text: str) -> None:
        """See `Wire`."""

    async def ping(self) -> None:
        """See `Wire`."""

    async def close(self, code: int, reason: str) -> None:
        """See `Wire`."""

    def abort(self) -> None:
        """See `Wire`."""


@dataclass(frozen=True)
class SocketLimits:
    """Bounds of one connection: in seconds, but `unconfirmed_bytes` (read, and not yet confirmed by Kafka) and
    `lost_after` (see `Durable`)."""

    ping_s: float = 15.0
    idle_s: float = 300.0
    resume_s: float = 30.0
    write_s: float = 10.0
    durable_every_s: float = 0.02
    unconfirmed_bytes: int = 1 << 20
    lost_after: int = 64


@dataclass(frozen=True)
class SocketParts:
    """What all connections of a gateway share. `following` is set while the events of sessions are followed."""

    log: AudioLog
    owner: SessionOwner
    hub: Hub
    following: asyncio.Event
    metrics: AudioMetrics
    limits: SocketLimits = SocketLimits()


class _Waiting(NamedTuple):
    """A record on its way to Kafka; `seq` None is the close."""

    record: HeadedRecord
    seq: int | None
    size: int
    since_s: float


@dataclass
class _Outbox:
    """What the client is still to be told: the newest of each kind."""

    resume: int | None = None
    durable: int | None = None
    stored: int | None = None
    closed: ClosedMessage | None = None
    bad: deque[ErrorMessage] = field(default_factory=lambda: deque(maxlen=_BAD_CHUNKS_MAX))
    resumed: bool = False

    def take(self) -> list[ServerMessage]:
        """The messages, in their order; nothing but errors precedes `resume`."""
        found: list[ServerMessage] = []
        if self.resume is not None:
            found.append(ResumeMessage(self.resume))
            self.resume, self.resumed = None, True
        while self.bad:
            found.append(self.bad.popleft())
        if not self.resumed:
            return found
        if self.durable is not None:
            found.append(DurableMessage(self.durable))
        if self.stored is not None:
            found.append(StoredMessage(self.stored))
        self.durable = self.stored = None
        if self.closed is not None:
            found.append(self.closed)
        return found


class AudioSocket:
    """The conversation of one connection; `connection` names it in the log, so that a newer one is told from it."""

    def __init__(self, session_id: str, connection: str, wire: AnyWire, parts: SocketParts) -> None:
        self.session_id = session_id
        self._connection = connection
        self._wire = wire
        self._parts = parts
        self._limits = parts.limits
        self._opened: Open | None = None
        self._place: Place | None = None
        self._rival = -1
        self._durable: Durable | None = None
        self._durable_told = -1
        self._stored_told = -1
        self._closing = False
        self._queue: deque[_Waiting] = deque()
        self._unconfirmed = 0
        self._outbox = _Outbox()
        self._ending: ErrorMessage | None = None
        self._failed = False
        self._over = asyncio.Event()
        self._work, self._room, self._news = asyncio.Event(), asyncio.Event(), asyncio.Event()
        self._heard_s = time.monotonic()
        self._reading = True

    # -- course ------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Converse until one side ends it."""
        metrics = self._parts.metrics
        sender = asyncio.create_task(self._send())
        writer = asyncio.create_task(self._write())
        tasks = [sender, writer, asyncio.create_task(self._watch())]
        metrics.sockets.inc()
        try:
            await self._read()
            if self._wire.too_large:
                metrics.errors.labels(ErrorCode.TOO_LARGE).inc()
            if self._ending is not None or self._outbox.closed is not None:
                await asyncio.wait([writer], timeout=3 * self._limits.write_s)
            # What was read is sent, whether or not the client is there to hear of it.
            await self._settled()
        finally:
            metrics.sockets.dec()
            self._parts.hub.leave(self)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    def _end(self, code: ErrorCode, message: str) -> None:
        """Say why, and close; the first reason counts."""
        if self._ending is not None or self._over.is_set():
            return
        self._ending = ErrorMessage(code, message)
        self._parts.metrics.errors.labels(code).inc()
        if code is ErrorCode.REFUSED:
            self._parts.metrics.refused.inc()
        for event in (self._over, self._room, self._news):
            event.set()

    # -- what others say of the session -------------------------------------------------------------------------

    def overtaken(self, offset: int) -> None:
        """See `Listener`."""
        self._rival = max(self._rival, offset)
        if self._place is not None and self._rival > self._place.offset:
            self._end(ErrorCode.REPLACED, "another connection has opened this session and goes on with it")

    def stop(self) -> None:
        """See `Listener`."""
        self._end(ErrorCode.UNAVAILABLE, "the gateway is stopping: connect again and resume")

    def note(self, event: AudioEvent) -> None:
        """See `Listener`."""
        match event:
            case SessionOpened() | SessionResumed():
                if event.connection not in (None, self._connection):
                    self.overtaken(event.source_offset)
            case SessionRefused():
                # One from before this connection's open is about an earlier attempt.
                if self._place is not None and event.source_offset >= self._place.offset:
                    self._end(ErrorCode.REFUSED, event.message)
            case SegmentStored():
                self._stored(event.stored_seq)
            case SessionClosed():
                self._is_closed(event.recording, event.md5)

    def _stored(self, seq: int | None) -> None:
        if seq is not None and seq > self._stored_told:
            self._stored_told = self._outbox.stored = seq
            self._news.set()

    def _is_closed(self, recording: str | None, md5: str | None) -> None:
        self._closing = True
        self._outbox.closed = ClosedMessage(recording, md5)
        self._news.set()

    # -- reader ------------------------------------------------------------------------------------------------

    async def _read(self) -> None:
        if not valid_id(self.session_id):
            shown = ascii(self.session_id[:100])
            self._end(ErrorCode.BAD_SESSION_ID, f"{shown} is no session id: {ID_RULE}")
        while not self._over.is_set():
            said = await self._wire.receive()
            if said is None or self._over.is_set():
                return
            if isinstance(said, bytes):
                await self._on_frame(said)
            else:
                await self._on_text(said)

    async def _on_text(self, text: str) -> None:
        message = decode_client_message(text)
        match message:
            case Malformed():
                self._end(ErrorCode.BAD_MESSAGE, f"this is no control message: {message.error}")
            case OpenMessage() if self._opened is None:
                await self._on_open(message)
            case OpenMessage():
                self._end(ErrorCode.CONFLICT, "the session is open on this connection already: open it once")
            case CloseMessage() if self._opened is None:
                self._end(ErrorCode.NOT_OPEN, "close of a session that was not opened: send open first")
            case CloseMessage() if self._closing:
                self._end(ErrorCode.ALREADY_CLOSED, "the session was closed already")
            case CloseMessage():
                self._closing = True
                self._enqueue(Close(self.session_id), None)

    async def _on_frame(self, raw: bytes) -> None:
        if self._opened is None:
            self._end(ErrorCode.NOT_OPEN, "a chunk of a session that was not opened: send open first")
            return
        if self._closing:
            self._end(ErrorCode.ALREADY_CLOSED, "a chunk came after the session was closed")
            return
        self._heard_s = time.monotonic()
        frame = decode_frame(raw)
        wrong = frame if isinstance(frame, Malformed) else misfit(self._opened, frame.data)
        if isinstance(frame, Malformed) or wrong is not None:
            assert wrong is not None
            self._parts.metrics.errors.labels(ErrorCode.BAD_CHUNK).inc()
            self._outbox.bad.append(ErrorMessage(ErrorCode.BAD_CHUNK, f"{wrong.reason}: {wrong.error}"))
            self._news.set()
            return
        self._parts.metrics.frames.inc()
        self._parts.metrics.bytes.inc(len(frame.data))
        self._enqueue(Chunk(self.session_id, frame.seq, frame.captured_ms, None, frame.data), frame.seq)
        while self._unconfirmed >= self._limits.unconfirmed_bytes and not self._over.is_set():
            self._room.clear()
            self._reading = False
            await self._room.wait()
        if not self._reading:
            self._reading = True
            # A pong may have waited unread.
            if self._wire.pinged_s is not None:
                self._wire.pinged_s = time.monotonic()

    async def _on_open(self, message: OpenMessage) -> None:
        opened = message.opened(self.session_id)
        if isinstance(opened, Malformed):
            self._end(ErrorCode.BAD_OPEN, opened.error)
            return
        self._opened = opened
        self._parts.hub.join(self)
        resuming = asyncio.create_task(self._resume(opened))
        over = asyncio.create_task(self._over.wait())
        try:
            await asyncio.wait([resuming, over], return_when=asyncio.FIRST_COMPLETED)
        finally:
            over.cancel()
            if not resuming.done():
                resuming.cancel()
        self._heard_s = time.monotonic()
        if resuming.done() and not resuming.cancelled():
            resuming.result()

    async def _resume(self, opened: Open) -> None:
        """Write the open, then ask the owner once it has folded it: all that was in the log before is counted in."""
        encoded = audio.encode(opened)
        marks = [(audio.REFUSE, b"1"), (audio.CONNECTION, self._connection.encode())]
        parts, limits = self._parts, self._limits
        try:
            async with asyncio.timeout(limits.resume_s):
                # From here on no event is missed; what happened before is in the owner's answer.
                await parts.following.wait()
                place = await parts.log.append([(encoded.key or b"", encoded.value, [*encoded.headers, *marks])])
            if place.offset < 0:
                raise PublishUnavailable("Kafka confirmed the open, but not where it lies")
            self._place = place
            state = await parts.owner.state(self.session_id, place, limits.resume_s)
        except PublishUnavailable as error:
            self._end(ErrorCode.UNAVAILABLE, f"{error}: connect again and resume")
        except OwnerAway as error:
            self._end(ErrorCode.UNAVAILABLE, f"{error}: connect again later")
        except TimeoutError:
            self._end(ErrorCode.UNAVAILABLE, "Kafka cannot be reached: connect again later")
        else:
            self._begin(opened, state)

    def _begin(self, opened: Open, state: SessionState) -> None:
        if state.status == "refused":
            self._end(ErrorCode.REFUSED, state.error)
            return
        if other := state.differs_from(opened):
            said = ", ".join(f"{name} {getattr(state, name)!r}" for name in other)
            self._end(ErrorCode.CONFLICT, f"the session was opened with {said}: a session has one format")
            return
        assert self._place is not None
        self.overtaken(self._rival)
        if self._ending is not None:
            return
        self._parts.hub.take_over(self, self._place.offset)
        self._durable = Durable(state.next_seq, self._limits.lost_after)
        self._durable_told = state.next_seq - 1
        self._outbox.resume = state.next_seq
        self._stored(state.stored_seq)
        if state.status == "closed":
            self._is_closed(state.recording, state.md5)
        elif state.status == "closing":
            self._closing = True
        self._news.set()

    # -- sender ------------------------------------------------------------------------------------------------

    def _enqueue(self, record: Chunk | Close, seq: int | None) -> None:
        encoded = audio.encode(record)
        headed = (encoded.key or b"", encoded.value, encoded.headers)
        # A close has no bytes, and is waited for as a chunk is.
        size = max(1, len(encoded.value))
        self._queue.append(_Waiting(headed, seq, size, time.monotonic()))
        self._unconfirmed += size
        self._work.set()

    async def _send(self) -> None:
        while True:
            await self._work.wait()
            self._work.clear()
            while self._queue:
                group = self._group()
                try:
                    await self._parts.log.append([waiting.record for waiting in group])
                except PublishUnavailable as error:
                    self._failed = True
                    self._end(ErrorCode.UNAVAILABLE, f"{error}: connect again and resume")
                    return
                finally:
                    self._unconfirmed -= sum(waiting.size for waiting in group)
                    self._room.set()
                self._confirmed(group)

    def _group(self) -> list[_Waiting]:
        group, size = [self._queue.popleft()], 0
        while self._queue and (size := size + self._queue[0].size) <= _GROUP_BYTES:
            group.append(self._queue.popleft())
        return group

    def _confirmed(self, group: list[_Waiting]) -> None:
        assert self._durable is not None
        now = time.monotonic()
        for waiting in group:
            if waiting.seq is not None:
                self._parts.metrics.durable_seconds.observe(now - waiting.since_s)
        self._durable.add(waiting.seq for waiting in group if waiting.seq is not None)
        if any(waiting.seq is None for waiting in group):
            self._durable.finish()
        last = self._durable.last
        if last is not None and last > self._durable_told:
            self._durable_told = self._outbox.durable = last
            self._news.set()

    async def _settled(self) -> None:
        """Wait until what was read is confirmed, or cannot be."""
        try:
            async with asyncio.timeout(self._limits.write_s):
                while self._unconfirmed and not self._failed:
                    self._room.clear()
                    await self._room.wait()
        except TimeoutError:
            pass

    # -- writer ------------------------------------------------------------------------------------------------

    async def _write(self) -> None:
        try:
            while True:
                await self._news.wait()
                self._news.clear()
                ending = self._ending
                if ending is not None and ending.code not in (ErrorCode.REPLACED, ErrorCode.UNAVAILABLE):
                    await self._settled()
                for message in self._outbox.take():
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
                await asyncio.sleep(self._limits.durable_every_s)
        except (ConnectionError, TimeoutError) as error:
            if isinstance(error, TimeoutError):
                self._parts.metrics.errors.labels("not_reading").inc()
            self._over.set()
            self._wire.abort()

    async def _say(self, message: ServerMessage) -> None:
        async with asyncio.timeout(self._limits.write_s):
            await self._wire.send(encode_message(message))

    # -- watch -------------------------------------------------------------------------------------------------

    async def _watch(self) -> None:
        pinged_s = asked_s = started_s = time.monotonic()
        every_s = min(_WATCH_S, self._limits.ping_s / 2, self._limits.idle_s / 2)
        while not self._over.is_set():
            await asyncio.sleep(every_s)
            now = time.monotonic()
            if self._opened is None:
                if now - started_s > self._limits.resume_s:
                    self._end(ErrorCode.IDLE, f"no open came within {self._limits.resume_s:g} s")
            elif not self._closing and now - self._heard_s > self._limits.idle_s + self._limits.resume_s * (
                self._durable is None
            ):
                self._end(ErrorCode.IDLE, f"no chunk came for {self._limits.idle_s:g} s: connect again to go on")
            elif self._closing and now - asked_s > _ASK_CLOSED_S:
                asked_s = now
                await self._ask_whether_closed()
            if now - pinged_s > self._limits.ping_s:
                pinged_s = now
                await self._ping(now)

    async def _ping(self, now: float) -> None:
        since_s = self._wire.pinged_s
        if since_s is not None and self._reading and now - since_s > 2 * self._limits.ping_s:
            self._parts.metrics.errors.labels("no_pong").inc()
            log.info("audio_connection_dead", session=self.session_id, silent_s=round(now - since_s, 1))
            self._over.set()
            self._wire.abort()
            return
        try:
            async with asyncio.timeout(self._limits.write_s):
                await self._wire.ping()
        except (ConnectionError, TimeoutError):
            self._over.set()
            self._wire.abort()

    async def _ask_whether_closed(self) -> None:
        """The event tells it; should it have been missed, the owner does."""
        if self._place is None or self._outbox.closed is not None:
            return
        try:
            state = await self._parts.owner.state(self.session_id, self._place, 2.0)
        except OwnerAway:
            return
        if state.status == "closed":
            self._is_closed(state.recording, state.md5)
