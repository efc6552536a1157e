"""A file's sound as the chunks of a session: what `sluiceway send-audio` sends, of any file that ffmpeg can read.

Memory is bounded by a chunk or a page: ffmpeg waits while nobody takes the next.
"""

from __future__ import annotations

import re
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from compose.ffmpeg import FfmpegFailed, ffmpeg
from streams.audio.containers.errors import BadAudio
from streams.audio.containers.ogg_opus import OggOpusReader
from topics import opus
from topics.audio import Format

CHUNK_MS = 128
#: Bytes of a chunk of FLAC: a quarter of a second of 16 kHz speech.
FLAC_CHUNK_BYTES = 4_096
_READ_BYTES = 65_536


class SourceError(Exception):
    """A file whose sound cannot be sent as asked; the message says why, and what would do."""


class SourceChunk(NamedTuple):
    """A chunk of a file, and the time at which its sound begins there."""

    seq: int
    at_ms: int
    data: bytes


@dataclass(frozen=True)
class SourceInfo:
    """What ffmpeg says of a file's first sound track. `duration_ms` is None where the file does not say."""

    codec: str
    rate: int
    channels: int
    duration_ms: int | None


async def probe(path: Path) -> SourceInfo:
    """Look at a file. Raises SourceError for one that cannot be read or has no sound."""
    if not path.is_file():
        raise SourceError(f"{path}: no such file")
    try:
        # Without an output ffmpeg only describes its input, and calls that a failure.
        async with ffmpeg("-i", f"file:{path}", level="info") as running:
            said = await running.said()
    except FfmpegFailed as error:
        raise SourceError(f"{path}: {error}") from error
    track = _TRACK.search(said)
    if track is None:
        reason = next(
            (line for line in said.splitlines() if "Error" in line or "Invalid" in line), "it has no sound track"
        )
        raise SourceError(f"{path}: no sound that ffmpeg can read: {reason.strip()}")
    length = _DURATION.search(said)
    duration_ms = None if length is None else _milliseconds(*(int(part) for part in length.groups()))
    return SourceInfo(track["codec"], int(track["rate"]), _channels_of(track["layout"]), duration_ms)


async def read_chunks(path: Path, format: Format, rate: int, channels: int) -> AsyncGenerator[SourceChunk, None]:
    """A file's sound as chunks of `format`, in order: PCM made to `rate` and `channels`, Opus packets and FLAC as they are.

    Raises SourceError for a file that cannot be read, has no sound, or is not what is to be passed on as it is; where a file
    is damaged further on, what came before was given.
    """
    info = await probe(path)
    if format is not Format.PCM_S16LE:
        _check(path, info, format, rate, channels)
    made = {Format.PCM_S16LE: _pcm, Format.OPUS: _opus, Format.FLAC: _flac}[format](path, rate, channels, info)
    seq = 0
    try:
        async with aclosing(made):
            async for at_ms, data in made:
                yield SourceChunk(seq, at_ms, data)
                seq += 1
    except (FfmpegFailed, BadAudio) as error:
        raise SourceError(f"{path}: {error}") from error
    if not seq:
        raise SourceError(f"{path}: its sound track is empty")


#: Times within the file, and chunks.
_Timed = AsyncGenerator[tuple[int, bytes], None]

_TRACK = re.compile(r"Stream #0:.*?Audio: (?P<codec>\w+).*?, (?P<rate>\d+) Hz, (?P<layout>[^,\n]+)")
_DURATION = re.compile(r"Duration: (\d+):(\d\d):(\d\d)\.(\d\d)")
_TIMES = re.compile(r"time=(\d+):(\d\d):(\d\d)\.(\d\d)")
_LAYOUTS = {"mono": 1, "stereo": 2, "downmix": 2, "binaural": 2, "quad": 4, "hexagonal": 6, "octagonal": 8, "cube": 8}


async def _pcm(path: Path, rate: int, channels: int, info: SourceInfo) -> _Timed:
    frame_bytes = 2 * channels
    size = rate * CHUNK_MS // 1000 * frame_bytes
    made_to = ("-ar", str(rate), "-ac", str(channels), "-c:a", "pcm_s16le", "-f", "s16le")
    async with ffmpeg("-i", f"file:{path}", "-map", "0:a:0", *made_to, "pipe:1") as running:
        sent = 0
        while data := await running.read_exactly(size):
            yield sent // frame_bytes * 1000 // rate, data
            sent += len(data)
        await running.check()


async def _opus(path: Path, rate: int, channels: int, info: SourceInfo) -> _Timed:
    reader, samples = OggOpusReader(), 0
    # From any container into Ogg, without a change to its packets.
    async with ffmpeg("-i", f"file:{path}", "-map", "0:a:0", "-c", "copy", "-f", "opus", "pipe:1") as running:
        while block := await running.read(_READ_BYTES):
            for packet in reader.feed(block):
                yield samples * 1000 // opus.RATE, packet
                samples += opus.packet_samples(packet) or 0
        await running.check()
    reader.finish()


async def _flac(path: Path, rate: int, channels: int, info: SourceInfo) -> _Timed:
    """The file itself if it is a FLAC stream, else the stream in it. Times go by the share of the bytes sent."""
    sent, size = 0, path.stat().st_size
    # An encoder that wrote to a pipe could not come back to say how long it was.
    duration_ms = await _measured_ms(path) if info.duration_ms is None else info.duration_ms
    async with aclosing(_flac_stream(path)) as stream:
        async for data in stream:
            yield duration_ms * min(sent, size) // size, data
            sent += len(data)


async def _measured_ms(path: Path) -> int:
    """How long a file's sound is, found by reading all of it."""
    async with ffmpeg("-i", f"file:{path}", "-map", "0:a:0", "-c", "copy", "-f", "null", "-", level="info") as running:
        found = _TIMES.findall(await running.said())
    return _milliseconds(*(int(part) for part in found[-1])) if found else 0


async def _flac_stream(path: Path) -> AsyncGenerator[bytes, None]:
    with path.open("rb") as file:
        if file.read(4) == b"fLaC":
            file.seek(0)
            while data := file.read(FLAC_CHUNK_BYTES):
                yield data
            return
    async with ffmpeg("-i", f"file:{path}", "-map", "0:a:0", "-c", "copy", "-f", "flac", "pipe:1") as running:
        while data := await running.read_exactly(FLAC_CHUNK_BYTES):
            yield data
        await running.check()


def _check(path: Path, info: SourceInfo, format: Format, rate: int, channels: int) -> None:
    """What is passed on as it is must be what the session says it is. Opus is of any rate: it keeps its own."""
    if info.codec != format:
        raise SourceError(f"{path}: its sound is {info.codec}, not {format}; any file can be sent as pcm_s16le")
    if info.channels != channels:
        raise SourceError(f"{path}: its {format} has {info.channels} channels, not {channels}")
    if format is Format.FLAC and info.rate != rate:
        raise SourceError(f"{path}: its flac is of {info.rate} Hz, not {rate}")


def _milliseconds(hours: int, minutes: int, seconds: int, hundredths: int) -> int:
    return ((hours * 60 + minutes) * 60 + seconds) * 1000 + hundredths * 10


def _channels_of(layout: str) -> int:
    """Channels of a layout as ffmpeg names it: `stereo`, `5.1(side)`, `7 channels`."""
    name = layout.split("(")[0].strip()
    return _LAYOUTS.get(name) or sum(int(number) for number in re.findall(r"\d+", name)) or 1
