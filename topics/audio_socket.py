"""What a gateway and its audio clients say to each other over a WebSocket: JSON control messages and binary frames."""

from __future__ import annotations

import struct
from enum import StrEnum
from typing import NamedTuple

import msgspec

from topics.audio import MAX_CHUNK_BYTES, MAX_SEQ, MAX_TIMESTAMP_MS, Open, Reason, new_open
from topics.malformed import Malformed

_FRAME = struct.Struct(">QQ")
FRAME_HEADER_BYTES = _FRAME.size
#: Bytes of a text frame: control messages are small.
MAX_MESSAGE_BYTES = 8_192


class Frame(NamedTuple):
    """One binary frame: a chunk, with its place in the session and the time it was captured."""

    seq: int
    captured_ms: int
    data: bytes


class ErrorCode(StrEnum):
    """Why a client's audio was not taken. Except for `bad_chunk`, the connection ends with it."""

    BAD_SESSION_ID = "bad_session_id"
    BAD_MESSAGE = "bad_message"
    BAD_OPEN = "bad_open"
    BAD_CHUNK = "bad_chunk"
    TOO_LARGE = "too_large"
    NOT_OPEN = "not_open"
    CONFLICT = "conflict"
    ALREADY_CLOSED = "already_closed"
    REFUSED = "refused"
    REPLACED = "replaced"
    IDLE = "idle"
    UNAVAILABLE = "unavailable"


class _Message(msgspec.Struct, frozen=True, tag_field="type", omit_defaults=True):
    pass


class OpenMessage(_Message, frozen=True, tag="open"):
    """A client's first word."""

    format: str
    rate: int
    channels: int
    user: str = ""
    tier: str | None = None
    store: str | None = None

    def opened(self, session_id: str) -> Open | Malformed:
        """The session that it opens, or what is wrong with it."""
        return new_open(session_id, self.user, self.format, self.rate, self.channels, self.tier, self.store)


class CloseMessage(_Message, frozen=True, tag="close"):
    """A client's last word."""


class ResumeMessage(_Message, frozen=True, tag="resume"):
    """Send from this seq: all below it is held."""

    from_seq: int = msgspec.field(name="from")


class DurableMessage(_Message, frozen=True, tag="durable"):
    """Kafka holds all up to this seq."""

    seq: int


class StoredMessage(_Message, frozen=True, tag="stored"):
    """The object store holds all up to this seq."""

    seq: int


class ClosedMessage(_Message, frozen=True, tag="closed"):
    """The session is over; without audio it has no recording, and both fields are null."""

    recording: str | None
    md5: str | None


class ErrorMessage(_Message, frozen=True, tag="error"):
    """What went wrong."""

    code: ErrorCode
    message: str


ClientMessage = OpenMessage | CloseMessage
ServerMessage = ResumeMessage | DurableMessage | StoredMessage | ClosedMessage | ErrorMessage

_client: msgspec.json.Decoder[ClientMessage] = msgspec.json.Decoder(ClientMessage)
_server: msgspec.json.Decoder[ServerMessage] = msgspec.json.Decoder(ServerMessage)


def encode_message(message: ClientMessage | ServerMessage) -> str:
    """A control message as a text frame."""
    return msgspec.json.encode(message).decode()


def decode_client_message(text: str | bytes) -> ClientMessage | Malformed:
    """What a client said. Total: any text gives a message or a `Malformed` of reason `bad_message`."""
    if len(text) > MAX_MESSAGE_BYTES:
        return Malformed(ErrorCode.BAD_MESSAGE, f"a control message has at most {MAX_MESSAGE_BYTES} bytes")
    try:
        return _client.decode(text)
    except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
        return Malformed(ErrorCode.BAD_MESSAGE, str(error))


def decode_server_message(text: str | bytes) -> ServerMessage | Malformed:
    """What a gateway said. Total, as `decode_client_message`."""
    try:
        return _server.decode(text)
    except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
        return Malformed(ErrorCode.BAD_MESSAGE, str(error))


def encode_frame(frame: Frame) -> bytes:
    """A chunk as a binary frame: 8 bytes seq, 8 bytes captured_ms, both big-endian, then the chunk."""
    return _FRAME.pack(frame.seq, frame.captured_ms) + frame.data


def decode_frame(raw: bytes, max_chunk_bytes: int = MAX_CHUNK_BYTES) -> Frame | Malformed:
    """A binary frame's chunk. Total; the reason of what is malformed is a `topics.audio.Reason`."""
    if len(raw) < FRAME_HEADER_BYTES:
        return Malformed(
            Reason.BAD_HEADER,
            f"a frame of {len(raw)} bytes: seq and captured_ms alone take {FRAME_HEADER_BYTES}",
        )
    seq, captured_ms = _FRAME.unpack_from(raw)
    if seq > MAX_SEQ:
        return Malformed(Reason.BAD_HEADER, f"seq {seq} is above {MAX_SEQ}")
    if captured_ms > MAX_TIMESTAMP_MS:
        return Malformed(Reason.BAD_HEADER, f"captured_ms {captured_ms} is after the year 2099: Unix milliseconds?")
    size = len(raw) - FRAME_HEADER_BYTES
    if not size:
        return Malformed(Reason.EMPTY, f"chunk {seq} has no bytes")
    if size > max_chunk_bytes:
        return Malformed(Reason.TOO_LARGE, f"chunk {seq} has {size} bytes; at most {max_chunk_bytes} are taken")
    return Frame(seq, captured_ms, raw[FRAME_HEADER_BYTES:])
