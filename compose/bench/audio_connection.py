"""One session of the load: a WebSocket client that costs the machine next to nothing, as the load shares it with what is
measured.

It writes each frame in one call, masked with zeros (the server undoes a mask whatever it is), and keeps of what it hears
only times and the end. It neither connects again nor resumes: what breaks is to be seen.
"""

from __future__ import annotations

import asyncio
import base64
import struct
import time
from array import array
from collections.abc import Callable

from compose.bench.voice import CHUNK_BYTES, CHUNK_S, RATE, Voice
from topics.audio_socket import (
    ClosedMessage,
    CloseMessage,
    DurableMessage,
    ErrorMessage,
    OpenMessage,
    ResumeMessage,
    decode_server_message,
    encode_message,
)

_TEXT, _BINARY, _CLOSE, _PING, _PONG = 0x1, 0x2, 0x8, 0x9, 0xA
_FINAL, _MASKED = 0x80, 0x80
_NO_MASK = bytes(4)
_CHUNK_HEAD = struct.Struct(">BBHIQQ")


class AudioConnection(asyncio.Protocol):
    """Session number `number`, named `session_id`. `resumed` is called when it may begin to send."""

    def __init__(self, number: int, session_id: str, host: str, voice: Voice, resumed: Callable[[], None]) -> None:
        self.number = number
        self.session_id = session_id
        self.sent = 0
        self.durable = -1
        self.closed: ClosedMessage | None = None
        self.trouble = ""
        #: When each chunk was sent, and how long each took to become durable, seconds.
        self.sent_at = array("d")
        self.latencies = array("d")
        self.over = asyncio.Event()
        self._host = host
        self._voice = voice
        self._resumed = resumed
        self._transport: asyncio.Transport | None = None
        self._heard = b""
        self._upgraded = False

    # -- what it says -----------------------------------------------------------------------------------------

    def send_chunk(self) -> None:
        """Send the next chunk."""
        if self._transport is None or self._transport.is_closing():
            return
        seq = self.sent
        head = _CHUNK_HEAD.pack(
            _FINAL | _BINARY, _MASKED | 126, CHUNK_BYTES + 16, 0, seq, round(seq * CHUNK_S * 1000) + 1
        )
        self.sent_at.append(time.monotonic())
        self._transport.write(head + self._voice.chunk(self.number, seq))
        self.sent += 1

    def send_close(self) -> None:
        """End the session."""
        self._text(encode_message(CloseMessage()))

    def _text(self, text: str) -> None:
        self._frame(_TEXT, text.encode())

    def _frame(self, opcode: int, payload: bytes) -> None:
        assert len(payload) < 126
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(bytes((_FINAL | opcode, _MASKED | len(payload))) + _NO_MASK + payload)

    # -- what it hears ----------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See `asyncio.Protocol`."""
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        key = base64.b64encode(self.number.to_bytes(16, "big")).decode()
        transport.write(
            f"GET /ws/audio/{self.session_id} HTTP/1.1\r\nHost: {self._host}\r\nUpgrade: websocket\r\n"
            f"Connection: Upgrade\r\nSec-WebSocket-Key: {key}\r\nSec-WebSocket-Version: 13\r\n\r\n".encode()
        )

    def connection_lost(self, error: Exception | None) -> None:
        """See `asyncio.Protocol`."""
        if self.closed is None and not self.trouble:
            self.trouble = f"the connection ended{f': {error}' if error else ''}"
        self.over.set()

    def data_received(self, data: bytes) -> None:
        """See `asyncio.Protocol`."""
        heard = self._heard + data if self._heard else data
        at = 0
        if not self._upgraded:
            end = heard.find(b"\r\n\r\n")
            if end < 0:
                self._heard = heard
                return
            if not heard.startswith(b"HTTP/1.1 101 "):
                self._broken(heard[:200].decode("latin-1"))
                return
            self._upgraded, at = True, end + 4
            self._text(encode_message(OpenMessage("pcm_s16le", RATE, 1, user="bench")))
        while len(heard) >= at + 2:
            size, begin = heard[at + 1], at + 2
            if size == 126:
                if len(heard) < at + 4:
                    break
                size, begin = int.from_bytes(heard[at + 2 : at + 4], "big"), at + 4
            if len(heard) < begin + size:
                break
            self._on_frame(heard[at] & 0x0F, heard[begin : begin + size])
            at = begin + size
        self._heard = heard[at:]

    def _on_frame(self, opcode: int, payload: bytes) -> None:
        if opcode == _PING:
            self._frame(_PONG, payload)
        elif opcode == _CLOSE and self._transport is not None:
            self._transport.close()
        if opcode != _TEXT:
            return
        match decode_server_message(payload):
            case DurableMessage(seq):
                now = time.monotonic()
                self.latencies.extend(now - self.sent_at[known] for known in range(self.durable + 1, seq + 1))
                self.durable = seq
            case ResumeMessage():
                self._resumed()
            case ClosedMessage() as message:
                self.closed = message
                self.over.set()
            case ErrorMessage(code, text):
                self._broken(f"{code}: {text}")

    def _broken(self, trouble: str) -> None:
        self.trouble = trouble
        if self._transport is not None:
            self._transport.close()
