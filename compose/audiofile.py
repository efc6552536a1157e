"""A file's audio as the chunks of a session: decoded or encoded by ffmpeg, read block by block."""

from __future__ import annotations

import asyncio
import importlib.util
import shutil
from collections.abc import AsyncIterator

from streams.audio.containers.ogg_opus import OggOpusReader
from topics.audio import Format

CHUNK_MS = 128
_FLAC_BYTES = 4_096


class AudioFileError(Exception):
    """The file cannot be read as audio; the message says why."""


def ffmpeg_path() -> str:
    """The system's ffmpeg, or the one from packages. Raises AudioFileError where there is none."""
    found = shutil.which("ffmpeg")
    if found is not None:
        return found
    if importlib.util.find_spec("imageio_ffmpeg") is None:
        raise AudioFileError(
            "ffmpeg is not installed: install it, or the extra `local` (pip install 'sluiceway[local]')"
        )
    import imageio_ffmpeg

    return str(imageio_ffmpeg.get_ffmpeg_exe())


async def audio_chunks(file: str, format: Format, rate: int, channels: int, realtime: bool) -> AsyncIterator[bytes]:
    """The chunks: 128 ms of PCM each, 4 KiB of a FLAC stream, or one Opus packet. Raises AudioFileError.

    With `realtime` they come as fast as they play.
    """
    pace = ["-re"] if realtime else []
    output = {
        Format.PCM_S16LE: ["-f", "s16le"],
        Format.FLAC: ["-sample_fmt", "s16", "-f", "flac"],
        Format.OPUS: ["-c:a", "libopus", "-f", "ogg"],
    }[format]
    shape = ["-map", "0:a:0", "-ac", str(channels), *([] if format is Format.OPUS else ["-ar", str(rate)])]
    command = [ffmpeg_path(), "-nostdin", "-v", "error", *pace, "-i", file, *shape, *output, "pipe:1"]
    # A session of its own: Ctrl-C is for the sender, which ends this one when it has closed.
    process = await asyncio.create_subprocess_exec(
        *command, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE, start_new_session=True
    )
    assert process.stdout is not None and process.stderr is not None
    complaints = asyncio.create_task(process.stderr.read())
    try:
        if format is Format.OPUS:
            async for packet in _packets(process.stdout):
                yield packet
        else:
            size = _FLAC_BYTES if format is Format.FLAC else rate * CHUNK_MS // 1000 * channels * 2
            async for block in _blocks(process.stdout, size):
                yield block
        if await process.wait():
            said = (await complaints).decode(errors="replace").strip().splitlines()
            raise AudioFileError(said[-1] if said else f"ffmpeg ended with code {process.returncode}")
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
        complaints.cancel()


async def _blocks(stream: asyncio.StreamReader, size: int) -> AsyncIterator[bytes]:
    while True:
        try:
            yield await stream.readexactly(size)
        except asyncio.IncompleteReadError as rest:
            if rest.partial:
                yield rest.partial
            return


async def _packets(stream: asyncio.StreamReader) -> AsyncIterator[bytes]:
    reader = OggOpusReader()
    async for block in _blocks(stream, _FLAC_BYTES):
        for packet in reader.feed(block):
            yield packet
