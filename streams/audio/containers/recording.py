"""A whole session as one object: what its format and `store` ask for, written block by block."""

from __future__ import annotations

import hashlib
import zlib
from typing import Protocol

from streams.audio.containers import wav
from streams.audio.containers.errors import BadAudio
from streams.audio.containers.flac import FlacEncoder
from streams.audio.containers.ogg_opus import OggOpusWriter
from topics import opus
from topics.audio import Format, Open, Store


class Recording(Protocol):
    """A recording under way: the object is `start()`, every `add()`, `finish()`; the same audio gives the same bytes.

    Once finished, `head` replaces its first `len(head)` bytes, so the part that holds them is sent last; it is empty where
    they stand as they are.
    """

    def start(self) -> bytes:
        """What precedes the audio."""

    def add(self, data: bytes) -> bytes:
        """What a block adds: any stretch of PCM or of a FLAC stream, or one Opus packet. Raises BadAudio."""

    def finish(self) -> bytes:
        """What comes last. Raises BadAudio for audio that cannot end here."""

    @property
    def head(self) -> bytes:
        """What replaces the first bytes."""

    @property
    def md5(self) -> str:
        """The MD5, in hex, of the PCM, or for Opus and FLAC of the bytes as received."""

    @property
    def duration_ms(self) -> int | None:
        """How long it plays; None if a FLAC stream does not say."""


def new_recording(opened: Open, pcm_bytes: int) -> Recording:
    """The recording of a session. `pcm_bytes`, which a WAV says first, is the size of its audio."""
    if opened.format is Format.OPUS:
        return _OpusRecording(opened)
    if opened.format is Format.FLAC:
        return _FlacAsReceived()
    return _WavRecording(opened, pcm_bytes) if opened.store is Store.WAV else _FlacRecording(opened)


class _WavRecording:
    head = b""

    def __init__(self, opened: Open, pcm_bytes: int) -> None:
        self._opened = opened
        self._size = pcm_bytes
        self._seen = 0
        self._md5 = hashlib.md5(usedforsecurity=False)

    def start(self) -> bytes:
        if self._size % self._opened.frame_bytes:
            raise BadAudio(f"{self._size} bytes are no whole number of {self._opened.channels}-channel samples")
        return wav.header(self._opened.rate, self._opened.channels, self._size)

    def add(self, data: bytes) -> bytes:
        self._seen += len(data)
        self._md5.update(data)
        return data

    def finish(self) -> bytes:
        if self._seen != self._size:
            raise BadAudio(f"{self._seen} bytes of PCM came; the header says {self._size}")
        return b""

    @property
    def md5(self) -> str:
        return self._md5.hexdigest()

    @property
    def duration_ms(self) -> int:
        return self._seen * 1000 // self._opened.byte_rate


class _FlacRecording:
    def __init__(self, opened: Open) -> None:
        self._rate = opened.rate
        self._encoder = FlacEncoder(opened.rate, opened.channels)

    def start(self) -> bytes:
        return b""

    def add(self, data: bytes) -> bytes:
        return self._encoder.add(data)

    def finish(self) -> bytes:
        return self._encoder.finish()

    @property
    def head(self) -> bytes:
        return self._encoder.head

    @property
    def md5(self) -> str:
        return self._encoder.md5

    @property
    def duration_ms(self) -> int:
        return self._encoder.samples * 1000 // self._rate


class _OpusRecording:
    head = b""

    def __init__(self, opened: Open) -> None:
        self._writer = OggOpusWriter(opened.rate, opened.channels, zlib.crc32(opened.session_id.encode()))
        self._md5 = hashlib.md5(usedforsecurity=False)

    def start(self) -> bytes:
        return self._writer.start()

    def add(self, data: bytes) -> bytes:
        self._md5.update(data)
        return self._writer.add(data)

    def finish(self) -> bytes:
        return self._writer.finish()

    @property
    def md5(self) -> str:
        return self._md5.hexdigest()

    @property
    def duration_ms(self) -> int:
        return self._writer.samples * 1000 // opus.RATE


class _FlacAsReceived:
    head = b""

    def __init__(self) -> None:
        self._first = b""
        self._md5 = hashlib.md5(usedforsecurity=False)

    def start(self) -> bytes:
        return b""

    def add(self, data: bytes) -> bytes:
        if len(self._first) < 26:
            self._first += data[: 26 - len(self._first)]
        self._md5.update(data)
        return data

    def finish(self) -> bytes:
        return b""

    @property
    def md5(self) -> str:
        return self._md5.hexdigest()

    @property
    def duration_ms(self) -> int | None:
        """As STREAMINFO says, whose sample count is 0 where its writer did not know."""
        if len(self._first) < 26 or self._first[:4] != b"fLaC" or self._first[4] & 0x7F:
            return None
        packed = int.from_bytes(self._first[18:26], "big")
        rate, samples = packed >> 44, packed & 0xF_FFFF_FFFF
        return samples * 1000 // rate if rate and samples else None
