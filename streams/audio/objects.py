"""A segment as an object that plays by itself, and its chunks out of it again; of many of them, the recording."""

from __future__ import annotations

import zlib
from collections.abc import Iterator

from streams.audio.containers import wav
from streams.audio.containers.ogg_opus import OggOpusReader, OggOpusWriter
from streams.audio.containers.recording import Recording
from topics.audio import Format, Open

CONTENT_TYPES = {"wav": "audio/wav", "flac": "audio/flac", "ogg": "audio/ogg"}


def segment_object(opened: Open, chunks: list[bytes]) -> bytes:
    """The object of consecutive chunks: a WAV of PCM, an Ogg stream of Opus packets, FLAC as it came."""
    if opened.format is Format.PCM_S16LE:
        return wav.wav_of(opened.rate, opened.channels, b"".join(chunks))
    if opened.format is Format.OPUS:
        return ogg_of(opened, chunks)
    return b"".join(chunks)


def ogg_of(opened: Open, packets: list[bytes]) -> bytes:
    """A playable Ogg stream of some packets."""
    writer = OggOpusWriter(opened.rate, opened.channels, zlib.crc32(opened.session_id.encode()))
    pages = [writer.start(), *(writer.add(packet) for packet in packets)]
    return b"".join([*pages, writer.finish()])


def audio_of(opened: Open, data: bytes) -> list[bytes]:
    """What a segment's object holds, as a `Recording` takes it. Raises BadAudio."""
    if opened.format is Format.PCM_S16LE:
        reader = wav.WavReader()
        pcm = reader.feed(data)
        reader.finish()
        return [pcm]
    if opened.format is Format.OPUS:
        packets = OggOpusReader()
        found = packets.feed(data)
        packets.finish()
        return found
    return [data]


class Parts:
    """Cuts a recording into equal parts. The first is held back, as its head may only be known at the end."""

    def __init__(self, recording: Recording, part_bytes: int) -> None:
        self._recording = recording
        self._part_bytes = part_bytes
        self._first = b""
        self._open = bytearray(recording.start())
        self._number = 1

    def add(self, data: bytes) -> Iterator[tuple[int, bytes]]:
        """The parts that are full, numbered from 2."""
        self._open += self._recording.add(data)
        return self._full()

    def finish(self) -> Iterator[tuple[int, bytes]]:
        """The last part, and then the first."""
        self._open += self._recording.finish()
        yield from self._full()
        rest = bytes(self._open)
        if self._number == 1:
            self._first = rest
        elif rest:
            yield self._number, rest
        head = self._recording.head
        yield 1, head + self._first[len(head) :]

    def _full(self) -> Iterator[tuple[int, bytes]]:
        # One byte more than a part: the last part is never empty.
        while len(self._open) > self._part_bytes:
            part = bytes(self._open[: self._part_bytes])
            del self._open[: self._part_bytes]
            if self._number == 1:
                self._first = part
            else:
                yield self._number, part
            self._number += 1
