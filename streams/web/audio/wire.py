"""One WebSocket as the conversation needs it: whole messages, pings and pongs, an end with a word and a code."""

from __future__ import annotations

import asyncio
import time

from aiohttp import WSCloseCode, WSMsgType, web

from topics.audio import MAX_CHUNK_BYTES
from topics.audio_socket import FRAME_HEADER_BYTES, ErrorCode, ErrorMessage, encode_message

MAX_FRAME_BYTES = MAX_CHUNK_BYTES + FRAME_HEADER_BYTES
_TOO_LARGE = f"a frame has at most {MAX_FRAME_BYTES} bytes: {FRAME_HEADER_BYTES}, and a chunk of {MAX_CHUNK_BYTES}"
#: RFC 6455, 5.2: the first byte of a text frame that is whole, and how long one may be whose length is one byte.
_FINAL_TEXT, _SMALL_FRAME_BYTES = 0x81, 125
_CLOSE_S = 2.0
_LINGER_S = 10.0


class _Response(web.WebSocketResponse):
    explaining = False

    async def close(self, *, code: int = WSCloseCode.OK, message: bytes = b"", drain: bool = True) -> bool:
        # aiohttp closes by itself on a frame that is too large; the client is to hear why.
        if code == WSCloseCode.MESSAGE_TOO_BIG and not self.closed:
            await self._explain()
        return await super().close(code=code, message=message, drain=drain)

    async def _explain(self) -> None:
        """Say that a frame is too large, and read on past it: a connection that is closed over unread bytes is reset, and
        the client would see that before the words."""
        self.explaining = True
        transport = self._req.transport if self._req is not None else None
        try:
            async with asyncio.timeout(_LINGER_S):
                await self.send_str(encode_message(ErrorMessage(ErrorCode.TOO_LARGE, _TOO_LARGE)))
                if self._writer is not None:
                    await self._writer.close(WSCloseCode.MESSAGE_TOO_BIG, b"too_large")
                while transport is not None and not transport.is_closing():  # noqa: ASYNC110
                    await asyncio.sleep(0.05)
        except (ConnectionError, TimeoutError):
            pass


class Wire:
    """Messages of one connection. `pinged_s` is when the oldest ping without an answer was sent."""

    def __init__(self, request: web.Request) -> None:
        # Uncompressed: a frame's size is then what it takes of memory.
        self.response = _Response(timeout=_CLOSE_S, autoping=False, max_msg_size=MAX_FRAME_BYTES, compress=False)
        self.pinged_s: float | None = None
        self.too_large = False
        self._request = request

    async def open(self) -> None:
        """Answer the handshake."""
        await self.response.prepare(self._request)

    async def receive(self) -> bytes | str | None:
        """The next message; None when there will be none."""
        while True:
            message = await self.response.receive()
            match message.type:
                case WSMsgType.BINARY:
                    return bytes(message.data)
                case WSMsgType.TEXT:
                    return str(message.data)
                case WSMsgType.PING:
                    await self.response.pong(message.data)
                case WSMsgType.PONG:
                    self.pinged_s = None
                case _:
                    self.too_large = self.response.close_code == WSCloseCode.MESSAGE_TOO_BIG
                    return None

    async def send(self, text: str) -> None:
        """Send a text frame; returns when the connection has taken it."""
        await self.response.send_str(text)

    def offer(self, text: str) -> bool:
        """Send a small text frame if the connection takes it at once; False, with nothing sent, otherwise.

        Past aiohttp's writer, which costs a task's turn: a frame that is not compressed is two bytes and the text.
        """
        transport, data = self._request.transport, text.encode()
        if transport is None or transport.is_closing() or self.response.closed or self.response.explaining:
            return False
        if len(data) > _SMALL_FRAME_BYTES or transport.get_write_buffer_size():
            return False
        transport.write(bytes((_FINAL_TEXT, len(data))) + data)
        return True

    async def ping(self) -> None:
        """Ask for a sign of life."""
        if self.pinged_s is None:
            self.pinged_s = time.monotonic()
        await self.response.ping()

    async def close(self, code: int, reason: str) -> None:
        """Say goodbye, and wait shortly for the answer."""
        await self.response.close(code=code, message=reason.encode()[:120])

    def abort(self) -> None:
        """End the connection without a word."""
        transport = self._request.transport
        if transport is not None:
            transport.abort()
