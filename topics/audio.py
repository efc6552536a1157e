"""The records of `audio.chunks.v1`: their headers, their strict decoding, and the one place that says what is valid audio."""

from __future__ import annotations

import hashlib
import re
from enum import StrEnum
from functools import lru_cache
from typing import TypeVar

import msgspec

from topics import opus
from topics.headers import Headers, header
from topics.ids import ID_RULE, valid_id
from topics.malformed import Malformed
from topics.typed import Encoded

MAX_USER_CHARS = 128
MIN_RATE, MAX_RATE = 8_000, 192_000
MAX_CHANNELS = 8
#: Bytes of one chunk: more than a second of the densest PCM taken.
MAX_CHUNK_BYTES = 1 << 20
MAX_SEQ = (1 << 40) - 1
#: 2100-01-01: a time past it is a unit mistake.
MAX_TIMESTAMP_MS = 4_102_444_800_000

#: Headers of an open that a gateway writes: the sender can be told no, and waits to hear it; and which connection it is.
REFUSE = "refuse"
CONNECTION = "connection"
_DIGITS = 15
_MD5 = re.compile(rb"[0-9a-fA-F]{32}")


class Format(StrEnum):
    """What a chunk's bytes are: whole frames of samples, a byte range of one FLAC stream, or one Opus packet."""

    PCM_S16LE = "pcm_s16le"
    FLAC = "flac"
    OPUS = "opus"


class Tier(StrEnum):
    """How long a session's window is."""

    STANDARD = "standard"
    PREMIUM = "premium"


class Store(StrEnum):
    """What a recording is kept as."""

    FLAC = "flac"
    WAV = "wav"
    ASIS = "asis"


class Reason(StrEnum):
    """Why a record is malformed: the labels of dead letters."""

    BAD_ID = "bad_id"
    BAD_TYPE = "bad_type"
    BAD_HEADER = "bad_header"
    EMPTY = "empty"
    TOO_LARGE = "too_large"
    MD5_MISMATCH = "md5_mismatch"
    ODD_LENGTH = "odd_length"
    BAD_PACKET = "bad_packet"


class Open(msgspec.Struct, frozen=True, gc=False):
    """A session begins. `store` is decided: `flac` or `wav` for PCM, `asis` for what is kept as received."""

    session_id: str
    user: str
    format: Format
    rate: int
    channels: int
    tier: Tier
    store: Store

    @property
    def frame_bytes(self) -> int:
        """Bytes of one PCM sample of every channel."""
        return 2 * self.channels

    @property
    def byte_rate(self) -> int:
        """Bytes of a second of PCM."""
        return self.rate * self.frame_bytes


class Chunk(msgspec.Struct, frozen=True, gc=False):
    """A piece of a session's audio. `md5` is what the producer said, in lower-case hex, and true."""

    session_id: str
    seq: int
    captured_ms: int
    md5: str | None
    data: bytes


class Close(msgspec.Struct, frozen=True, gc=False):
    """Nothing follows in this session."""

    session_id: str


class Idle(msgspec.Struct, frozen=True, gc=False):
    """The partition's owner says that time has passed; it belongs to no session."""


AudioRecord = Open | Chunk | Close | Idle


def decode(
    key: bytes | None, value: bytes | None, headers: Headers, max_chunk_bytes: int = MAX_CHUNK_BYTES
) -> AudioRecord | Malformed:
    """One record of the topic. Total: any bytes give a record or a `Malformed`, whose reason is a `Reason`."""
    kind = header(headers, "type")
    if kind == b"idle":
        return Idle()
    session_id = _session_id(key or b"")
    if session_id is None:
        return Malformed(Reason.BAD_ID, f"the key {(key or b'')[:160]!r} is no session id: {ID_RULE}")
    if kind == b"chunk":
        return _chunk(session_id, value or b"", headers, max_chunk_bytes)
    if kind == b"open":
        return _open(session_id, headers)
    if kind == b"close":
        return Close(session_id)
    said = "is missing" if kind is None else f"{kind[:60]!r} is none of open, chunk, close, idle"
    return Malformed(Reason.BAD_TYPE, f"header type {said}")


def encode(record: AudioRecord) -> Encoded:
    """A record as producers send it; `decode` gives it back."""
    match record:
        case Chunk():
            said = chunk_headers(record.seq, record.captured_ms)
            if record.md5 is not None:
                said.append(("md5", record.md5.encode()))
            return Encoded(record.session_id.encode(), record.data, said)
        case Open():
            headers = {name: str(getattr(record, name)) for name in record.__struct_fields__[1:]}
            return _encoded(record.session_id, b"", {"type": "open", **headers})
        case Close():
            return _encoded(record.session_id, b"", {"type": "close"})
        case Idle():
            return Encoded(None, b"", [("type", b"idle")])


def chunk_headers(seq: int, captured_ms: int) -> list[tuple[str, bytes | None]]:
    """The headers of a chunk's record."""
    return [("type", b"chunk"), ("seq", b"%d" % seq), ("captured_ms", b"%d" % captured_ms)]


def new_open(
    session_id: str, user: str, format: str, rate: int, channels: int, tier: str | None, store: str | None
) -> Open | Malformed:
    """An `Open` of values whose types are right, or what is wrong with them. `store` None leaves the choice to the format."""
    kind, level = _member(Format, format), _member(Tier, tier or Tier.STANDARD)
    if kind is None:
        return _bad(f"format {format[:60]!r} is none of {', '.join(Format)}")
    if level is None:
        return _bad(f"tier {str(tier)[:60]!r} is none of {', '.join(Tier)}")
    if len(user) > MAX_USER_CHARS or not user.isprintable():
        return _bad(f"user {user[:60]!r} is longer than {MAX_USER_CHARS} characters or has unprintable ones")
    if not MIN_RATE <= rate <= MAX_RATE or (rate > 65_535 and rate % 10):
        # The second is a rule of FLAC's frame headers, met by every rate in use.
        return _bad(f"rate {rate} is not within {MIN_RATE} to {MAX_RATE}, in tens above 65535")
    if not 1 <= channels <= MAX_CHANNELS:
        return _bad(f"channels {channels} is not within 1 to {MAX_CHANNELS}")
    if kind is Format.OPUS and channels == 7:
        return _bad(
            "Opus of 7 channels: encoders lay its packets out in different ways, and the packets do not say which"
        )
    kept = _kept_as(kind, store)
    return kept if isinstance(kept, Malformed) else Open(session_id, user, kind, rate, channels, level, kept)


def misfit(opened: Open, data: bytes) -> Malformed | None:
    """Why a chunk's bytes are not of its session's format, or None."""
    if opened.format is Format.PCM_S16LE and len(data) % opened.frame_bytes:
        return Malformed(
            Reason.ODD_LENGTH, f"{len(data)} bytes are no whole number of {opened.channels}-channel 16-bit samples"
        )
    if opened.format is Format.OPUS and opus.packet_samples(data) is None:
        return Malformed(Reason.BAD_PACKET, f"{len(data)} bytes from {data[:2].hex()} are no Opus packet")
    return None


def duration_us(opened: Open, data: bytes) -> int | None:
    """Microseconds that a fitting chunk plays, rounded down; None for FLAC, whose chunks end anywhere."""
    match opened.format:
        case Format.PCM_S16LE:
            return len(data) // opened.frame_bytes * 1_000_000 // opened.rate
        case Format.OPUS:
            return (opus.packet_samples(data) or 0) * 1_000_000 // opus.RATE
        case Format.FLAC:
            return None


@lru_cache(maxsize=16_384)
def _session_id(key: bytes) -> str | None:
    """The id that a key is, which comes again with each chunk; None for another one."""
    session_id = key.decode("ascii", "replace")
    return session_id if valid_id(session_id) else None


def _chunk(session_id: str, data: bytes, headers: Headers, max_bytes: int) -> Chunk | Malformed:
    seq = _number(headers, "seq", MAX_SEQ)
    captured_ms = _number(headers, "captured_ms", MAX_TIMESTAMP_MS)
    if isinstance(seq, Malformed):
        return seq
    if isinstance(captured_ms, Malformed):
        return captured_ms
    if not data:
        return Malformed(Reason.EMPTY, f"chunk {seq} has no bytes")
    if len(data) > max_bytes:
        return Malformed(Reason.TOO_LARGE, f"chunk {seq} has {len(data)} bytes; at most {max_bytes} are taken")
    said = header(headers, "md5")
    if said is None:
        return Chunk(session_id, seq, captured_ms, None, data)
    if not _MD5.fullmatch(said):
        return _bad(f"md5 {said[:60]!r} is not 32 hexadecimal digits")
    md5 = hashlib.md5(data, usedforsecurity=False).hexdigest()
    if md5 != said.decode().lower():
        return Malformed(Reason.MD5_MISMATCH, f"chunk {seq} has MD5 {md5}, but its header says {said.decode()}")
    return Chunk(session_id, seq, captured_ms, md5, data)


def _open(session_id: str, headers: Headers) -> Open | Malformed:
    rate = _number(headers, "rate", MAX_RATE)
    channels = _number(headers, "channels", MAX_CHANNELS)
    if isinstance(rate, Malformed):
        return rate
    if isinstance(channels, Malformed):
        return channels
    texts: dict[str, str | None] = {}
    for name in ("user", "format", "tier", "store"):
        raw = header(headers, name)
        try:
            texts[name] = None if raw is None else raw.decode()
        except UnicodeDecodeError:
            return _bad(f"{name} is not UTF-8")
    return new_open(
        session_id, texts["user"] or "", texts["format"] or "", rate, channels, texts["tier"], texts["store"]
    )


def _kept_as(format: Format, store: str | None) -> Store | Malformed:
    """What the recording will be. PCM as received is a WAV: the same bytes behind a header that says what they are."""
    asked = _member(Store, store or (Store.FLAC if format is Format.PCM_S16LE else Store.ASIS))
    if asked is None:
        return _bad(f"store {str(store)[:60]!r} is none of {', '.join(Store)}")
    if format is Format.PCM_S16LE:
        return Store.WAV if asked is Store.ASIS else asked
    if asked is Store.ASIS or asked.value == format.value:
        return Store.ASIS
    return _bad(f"store {asked} needs pcm_s16le; {format} is kept as it is received")


def _number(headers: Headers, name: str, most: int) -> int | Malformed:
    raw = header(headers, name)
    if raw is None:
        return _bad(f"header {name} is missing")
    number = int(raw) if len(raw) <= _DIGITS and raw.isdigit() else -1
    if not 0 <= number <= most:
        return _bad(f"{name} {raw[:60]!r} is no whole number from 0 to {most}")
    return number


_Member = TypeVar("_Member", Format, Tier, Store)


def _member(kind: type[_Member], text: str) -> _Member | None:
    try:
        return kind(text)
    except ValueError:
        return None


def _bad(error: str) -> Malformed:
    return Malformed(Reason.BAD_HEADER, error)


def _encoded(session_id: str, value: bytes, headers: dict[str, str]) -> Encoded:
    return Encoded(session_id.encode(), value, [(name, text.encode()) for name, text in headers.items()])
