"""Sends one audio session through a gateway: connects again and resumes by itself, and keeps what is not durable yet."""

from __future__ import annotations

import asyncio
import hashlib
import random
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from urllib.parse import quote

from aiohttp import ClientError, ClientSession, ClientTimeout, ClientWebSocketResponse, WSMsgType

from topics.audio_socket import (
    ClosedMessage,
    CloseMessage,
    DurableMessage,
    ErrorCode,
    ErrorMessage,
    Frame,
    OpenMessage,
    ResumeMessage,
    StoredMessage,
    decode_server_message,
    encode_frame,
    encode_message,
)

_AGAIN = {ErrorCode.UNAVAILABLE, ErrorCode.REFUSED, ErrorCode.IDLE}
_BACKOFF_MAX_S = 5.0


class SendFailed(Exception):
    """The session cannot be sent; the message says why."""


class _Interrupted(Exception):
    """The connection is over, and another may do better."""


@dataclass
class Sent:
    """What became of the session. `md5` is of what was read of the source."""

    session_id: str
    chunks: int = 0
    bytes: int = 0
    md5: str = ""
    durable: int = -1
    stored: int = -1
    connections: int = 0
    recording: str | None = None
    recorded_md5: str | None = None
    trouble: list[str] = field(default_factory=list)


class AudioSender:
    """Sends the chunks of `source` as one session. `url` is the gateway's; `stop` ends the source early, and cleanly.

    Gives up when there was no progress for `give_up_s`. At most `ahead_bytes` are kept that are not durable.
    """

    def __init__(
        self,
        url: str,
        session_id: str,
        opened: OpenMessage,
        source: AsyncIterator[bytes],
        *,
        api_key: str = "",
        give_up_s: float = 120.0,
        ahead_bytes: int = 4 << 20,
        progress: Callable[[Sent], None] = lambda sent: None,
    ) -> None:
        self.sent = Sent(session_id)
        self._url = f"{url.rstrip('/')}/ws/audio/{quote(session_id, safe='')}"
        self._opened = opened
        self._source = source
        self._headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        self._give_up_s = give_up_s
        self._ahead_bytes = ahead_bytes
        self._progress = progress
        self._md5 = hashlib.md5(usedforsecurity=False)
        self._kept: dict[int, Frame] = {}
        self._kept_bytes = 0
        self._room = asyncio.Event()
        self._ended = False
        self._reading: asyncio.Future[bytes | None] | None = None
        self._stopped = asyncio.Event()
        self._progressed_s = time.monotonic()

    def stop(self) -> None:
        """Read no further: close the session with what was read."""
        self._stopped.set()

    async def run(self) -> Sent:
        """Send all and wait for the recording. Raises SendFailed."""
        pause_s = 0.1
        async with ClientSession(headers=self._headers, timeout=ClientTimeout(total=None, sock_connect=10)) as client:
            while True:
                begun = self._progressed_s
                try:
                    async with client.ws_connect(self._url, compress=0, max_msg_size=1 << 16) as socket:
                        self.sent.connections += 1
                        closed = await self._converse(socket)
                        break
                except (ClientError, OSError, TimeoutError, _Interrupted) as error:
                    if getattr(error, "status", None) in (400, 401, 403, 404):
                        raise SendFailed(f"the gateway refuses the connection: {error}") from None
                    self.sent.trouble.append(str(error) or type(error).__name__)
                    if time.monotonic() - self._progressed_s > self._give_up_s:
                        raise SendFailed(
                            f"no progress for {self._give_up_s:g} s; the last trouble: {self.sent.trouble[-1]}"
                        ) from None
                pause_s = 0.1 if self._progressed_s > begun else min(_BACKOFF_MAX_S, pause_s * 2)
                await asyncio.sleep(pause_s * random.uniform(0.5, 1.0))
        self.sent.recording, self.sent.recorded_md5 = closed.recording, closed.md5
        while not self._stopped.is_set() and await self._read() is not None:
            # The session was over before this sender came to its end: what is compared is the whole.
            continue
        self.sent.md5 = self._md5.hexdigest()
        return self.sent

    async def _converse(self, socket: ClientWebSocketResponse) -> ClosedMessage:
        await socket.send_str(encode_message(self._opened))
        resume: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        sending = asyncio.create_task(self._send(socket, resume))
        hearing = asyncio.create_task(self._hear(socket, resume))
        try:
            await asyncio.wait([sending, hearing], return_when=asyncio.FIRST_COMPLETED)
            if not hearing.done() and sending.exception() is not None:
                # What the gateway said before it broke off tells more than the broken connection does.
                await asyncio.wait([hearing], timeout=2.0)
            if hearing.done():
                return hearing.result()
            sending.result()
            return await hearing
        finally:
            for task in (sending, hearing):
                task.cancel()
            await asyncio.gather(sending, hearing, return_exceptions=True)

    async def _hear(self, socket: ClientWebSocketResponse, resume: asyncio.Future[int]) -> ClosedMessage:
        async for frame in socket:
            if frame.type is not WSMsgType.TEXT:
                continue
            message = decode_server_message(frame.data)
            match message:
                case ResumeMessage():
                    self._progressed_s = time.monotonic()
                    self._drop(message.from_seq - 1)
                    resume.set_result(message.from_seq)
                case DurableMessage():
                    self._progressed_s = time.monotonic()
                    self._drop(message.seq)
                case StoredMessage():
                    self._progressed_s = time.monotonic()
                    self.sent.stored = message.seq
                case ClosedMessage():
                    return message
                case ErrorMessage() if message.code in _AGAIN:
                    raise _Interrupted(f"{message.code}: {message.message}")
                case ErrorMessage():
                    raise SendFailed(f"{message.code}: {message.message}")
            self._progress(self.sent)
        raise _Interrupted("the gateway closed the connection")

    async def _send(self, socket: ClientWebSocketResponse, resume: asyncio.Future[int]) -> None:
        seq = await resume
        while (frame := await self._frame(seq)) is not None:
            await socket.send_bytes(encode_frame(frame))
            self._progress(self.sent)
            seq += 1
        await socket.send_str(encode_message(CloseMessage()))

    async def _frame(self, seq: int) -> Frame | None:
        """The chunk of this seq: kept, or read from the source; None past its end."""
        if seq in self._kept:
            return self._kept[seq]
        if seq < self.sent.chunks and seq <= self.sent.durable:
            raise SendFailed(f"the gateway asks for chunk {seq}, which it had called durable")
        while self._kept_bytes > self._ahead_bytes:
            self._room.clear()
            await self._room.wait()
        while self.sent.chunks <= seq:
            frame = await self._read()
            if frame is None:
                return None
            if frame.seq >= seq:
                self._kept[frame.seq] = frame
                self._kept_bytes += len(frame.data)
                return frame
        return None

    async def _read(self) -> Frame | None:
        if self._ended or self._stopped.is_set():
            return None
        # A read outlives the connection that asked for it: cancelled, the source would be at its end.
        if self._reading is None:
            self._reading = asyncio.ensure_future(self._next())
        data = await asyncio.shield(self._reading)
        self._reading = None
        if data is None:
            self._ended = True
            return None
        self._md5.update(data)
        frame = Frame(self.sent.chunks, time.time_ns() // 1_000_000, data)
        self.sent.chunks += 1
        self.sent.bytes += len(data)
        return frame

    async def _next(self) -> bytes | None:
        return await anext(self._source, None)

    def _drop(self, through: int) -> None:
        """All up to here are durable."""
        self.sent.durable = max(self.sent.durable, through)
        for seq in [seq for seq in self._kept if seq <= through]:
            self._kept_bytes -= len(self._kept.pop(seq).data)
        self._room.set()
