"""One audio connection: open, resume, chunks, durable and stored, close, closed; and how each can go wrong.

Three tasks share it. The reader takes messages, hands chunks to Kafka in their order (`uplink`), and stops taking them while
too much waits there. The teller says how far it is (`teller`). The watch pings and looks at the time (`watch`).
"""

from __future__ import annotations

import asyncio
import time

from streams.web.audio.owner import SessionState
from streams.web.audio.parts import AnyWire, SocketParts
from streams.web.audio.teller import Teller
from streams.web.audio.uplink import Uplink
from streams.web.audio.watch import watch
from streams.web.owner import OwnerAway
from streams.web.publisher import Place, PublishUnavailable
from topics import audio
from topics.audio import Close, Open, misfit
from topics.audio_events import AudioEvent, SegmentStored, SessionClosed, SessionOpened, SessionRefused, SessionResumed
from topics.audio_socket import (
    ClosedMessage,
    CloseMessage,
    ErrorCode,
    ErrorMessage,
    OpenMessage,
    decode_client_message,
    decode_frame,
)
from topics.ids import ID_RULE, valid_id
from topics.malformed import Malformed


class AudioSocket:
    """The conversation of one connection; `connection` names it in the log, so that a newer one is told from it."""

    def __init__(self, session_id: str, connection: str, wire: AnyWire, parts: SocketParts) -> None:
        self.session_id = session_id
        self.wire = wire
        self.limits = parts.limits
        self.opened: Open | None = None
        self.closing = False
        self.reading = True
        self.over = asyncio.Event()
        self.heard_s = time.monotonic()
        self._key = session_id.encode("utf-8", "replace")
        self._connection = connection
        self._parts = parts
        self._place: Place | None = None
        self._rival = -1
        self._uplink = Uplink(parts.log, parts.limits, parts.metrics, self._on_durable, self._on_failed)
        self._teller = Teller(wire, parts.limits, parts.metrics, self.over, self._uplink.settled)

    # -- course ------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Converse until one side ends it."""
        metrics = self._parts.metrics
        telling = asyncio.create_task(self._teller.run())
        tasks = [telling, asyncio.create_task(watch(self, metrics))]
        metrics.sockets.inc()
        try:
            await self._read()
            if self.wire.too_large:
                metrics.errors.labels(ErrorCode.TOO_LARGE).inc()
            if self._teller.ending is not None or self._teller.closed is not None:
                await asyncio.wait([telling], timeout=3 * self.limits.write_s)
            # What was read is sent, whether or not the client is there to hear of it.
            await self._uplink.settled()
        finally:
            metrics.sockets.dec()
            self._parts.hub.leave(self)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    def end(self, code: ErrorCode, message: str) -> None:
        """Say why, and close; the first reason counts."""
        self._teller.end(ErrorMessage(code, message))
        self._uplink.wake()

    @property
    def begun(self) -> bool:
        """Whether the client was told from where to send."""
        return self._uplink.begun

    # -- what others say of the session -------------------------------------------------------------------------

    def overtaken(self, offset: int) -> None:
        """See `Listener`."""
        self._rival = max(self._rival, offset)
        if self._place is not None and self._rival > self._place.offset:
            self.end(ErrorCode.REPLACED, "another connection has opened this session and goes on with it")

    def stop(self) -> None:
        """See `Listener`."""
        self.end(ErrorCode.UNAVAILABLE, "the gateway is stopping: connect again and resume")

    def note(self, event: AudioEvent) -> None:
        """See `Listener`."""
        match event:
            case SessionOpened() | SessionResumed():
                if event.connection not in (None, self._connection):
                    self.overtaken(event.source_offset)
            case SessionRefused():
                # One from before this connection's open is about an earlier attempt.
                if self._place is not None and event.source_offset >= self._place.offset:
                    self.end(ErrorCode.REFUSED, event.message)
            case SegmentStored():
                self._teller.stored(event.stored_seq)
            case SessionClosed():
                self._is_closed(event.recording, event.md5)

    async def ask_whether_closed(self) -> None:
        """The event tells it; should it have been missed, the owner does."""
        if self._place is None or self._teller.closed is not None:
            return
        try:
            state = await self._parts.owner.state(self.session_id, self._place, 2.0)
        except OwnerAway:
            return
        if state.status == "closed":
            self._is_closed(state.recording, state.md5)

    def _is_closed(self, recording: str | None, md5: str | None) -> None:
        self.closing = True
        self._teller.close(ClosedMessage(recording, md5))

    # -- what Kafka says ---------------------------------------------------------------------------------------

    def _on_durable(self, seq: int) -> None:
        self._teller.durable(seq)

    def _on_failed(self, error: PublishUnavailable) -> None:
        self.end(ErrorCode.UNAVAILABLE, f"{error}: connect again and resume")

    # -- reader ------------------------------------------------------------------------------------------------

    async def _read(self) -> None:
        if not valid_id(self.session_id):
            shown = ascii(self.session_id[:100])
            self.end(ErrorCode.BAD_SESSION_ID, f"{shown} is no session id: {ID_RULE}")
        while not self.over.is_set():
            said = await self.wire.receive()
            if said is None or self.over.is_set():
                return
            if isinstance(said, bytes):
                await self._on_frame(said)
            else:
                await self._on_text(said)

    async def _on_text(self, text: str) -> None:
        message = decode_client_message(text)
        match message:
            case Malformed():
                self.end(ErrorCode.BAD_MESSAGE, f"this is no control message: {message.error}")
            case OpenMessage() if self.opened is None:
                await self._on_open(message)
            case OpenMessage():
                self.end(ErrorCode.CONFLICT, "the session is open on this connection already: open it once")
            case CloseMessage() if self.opened is None:
                self.end(ErrorCode.NOT_OPEN, "close of a session that was not opened: send open first")
            case CloseMessage() if self.closing:
                self.end(ErrorCode.ALREADY_CLOSED, "the session was closed already")
            case CloseMessage():
                self.closing = True
                encoded = audio.encode(Close(self.session_id))
                self._uplink.send((self._key, encoded.value, encoded.headers), None)

    async def _on_frame(self, raw: bytes) -> None:
        if self.opened is None:
            self.end(ErrorCode.NOT_OPEN, "a chunk of a session that was not opened: send open first")
            return
        if self.closing:
            self.end(ErrorCode.ALREADY_CLOSED, "a chunk came after the session was closed")
            return
        self.heard_s = time.monotonic()
        frame = decode_frame(raw)
        wrong = frame if isinstance(frame, Malformed) else misfit(self.opened, frame.data)
        if isinstance(frame, Malformed) or wrong is not None:
            assert wrong is not None
            self._teller.bad(ErrorMessage(ErrorCode.BAD_CHUNK, f"{wrong.reason}: {wrong.error}"))
            return
        self._parts.metrics.frames.inc()
        self._parts.metrics.bytes.inc(len(frame.data))
        self._uplink.send((self._key, frame.data, audio.chunk_headers(frame.seq, frame.captured_ms)), frame.seq)
        if self._uplink.full:
            await self._wait_for_room()

    async def _wait_for_room(self) -> None:
        self.reading = False
        while self._uplink.full and not self.over.is_set():
            await self._uplink.changed()
        self.reading = True
        # A pong may have waited unread.
        if self.wire.pinged_s is not None:
            self.wire.pinged_s = time.monotonic()

    async def _on_open(self, message: OpenMessage) -> None:
        opened = message.opened(self.session_id)
        if isinstance(opened, Malformed):
            self.end(ErrorCode.BAD_OPEN, opened.error)
            return
        self.opened = opened
        self._parts.hub.join(self)
        resuming = asyncio.create_task(self._resume(opened))
        over = asyncio.create_task(self.over.wait())
        try:
            await asyncio.wait([resuming, over], return_when=asyncio.FIRST_COMPLETED)
        finally:
            over.cancel()
            if not resuming.done():
                resuming.cancel()
        self.heard_s = time.monotonic()
        if resuming.done() and not resuming.cancelled():
            resuming.result()

    async def _resume(self, opened: Open) -> None:
        """Write the open, then ask the owner once it has folded it: all that was in the log before is counted in."""
        encoded = audio.encode(opened)
        marks = [(audio.REFUSE, b"1"), (audio.CONNECTION, self._connection.encode())]
        parts, limits = self._parts, self.limits
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
            self.end(ErrorCode.UNAVAILABLE, f"{error}: connect again and resume")
        except OwnerAway as error:
            self.end(ErrorCode.UNAVAILABLE, f"{error}: connect again later")
        except TimeoutError:
            self.end(ErrorCode.UNAVAILABLE, "Kafka cannot be reached: connect again later")
        else:
            self._begin(opened, state)

    def _begin(self, opened: Open, state: SessionState) -> None:
        if state.status == "refused":
            self.end(ErrorCode.REFUSED, state.error)
            return
        if other := state.differs_from(opened):
            said = ", ".join(f"{name} {getattr(state, name)!r}" for name in other)
            self.end(ErrorCode.CONFLICT, f"the session was opened with {said}: a session has one format")
            return
        assert self._place is not None
        self.overtaken(self._rival)
        if self._teller.ending is not None:
            return
        self._parts.hub.take_over(self, self._place.offset)
        self._uplink.begin(state.next_seq)
        self._teller.resume(state.next_seq)
        self._teller.stored(state.stored_seq)
        if state.status == "closed":
            self._is_closed(state.recording, state.md5)
        elif state.status == "closing":
            self.closing = True
