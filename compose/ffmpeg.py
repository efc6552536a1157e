"""ffmpeg as a child that is read from: its output in blocks, its complaints kept, its end certain."""

from __future__ import annotations

import asyncio
import functools
import os
import re
import shutil
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from importlib import resources

_COMPLAINT_BYTES = 8_192


class FfmpegFailed(Exception):
    """ffmpeg is not there, or could not do what was asked; the message is its own word."""


@functools.cache
def executable() -> str:
    """The ffmpeg that `IMAGEIO_FFMPEG_EXE` names, or the `local` extra brings along, else the system's. Raises FfmpegFailed.

    It is not tried out: imageio_ffmpeg does that, and takes one that is killed at that moment for missing ever after.
    """
    found = os.environ.get("IMAGEIO_FFMPEG_EXE") or _brought_along() or shutil.which("ffmpeg")
    if found is None:
        raise FfmpegFailed("no ffmpeg: install it, or this package with its extra `local`")
    return found


def _brought_along() -> str | None:
    try:
        files = resources.files("imageio_ffmpeg.binaries").iterdir()
    except ModuleNotFoundError:
        return None
    return next((str(file) for file in files if file.name.startswith("ffmpeg-")), None)


class Ffmpeg:
    """One run under way. It waits while nobody reads, so no more than a pipe's worth is held."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        assert process.stdout is not None and process.stderr is not None
        self._process = process
        self._out = process.stdout
        self._said = b""
        self._listening = asyncio.create_task(self._listen(process.stderr))

    async def read(self, most: int) -> bytes:
        """Some bytes, or none at the end."""
        return await self._out.read(most)

    async def read_exactly(self, size: int) -> bytes:
        """`size` bytes, or at the end what is left."""
        try:
            return await self._out.readexactly(size)
        except asyncio.IncompleteReadError as error:
            return error.partial

    async def said(self) -> str:
        """What it had to say when it ended, the last of it if that is much."""
        await self._process.wait()
        await self._listening
        return self._said.decode(errors="replace")

    async def check(self) -> None:
        """Wait for its end. Raises FfmpegFailed if it failed."""
        lines = (await self.said()).strip().splitlines()
        if self._process.returncode:
            # The first line is the cause, behind the address of whatever noticed it; the others follow from it.
            reason = re.sub(r"^\[[^]]* @ 0x[0-9a-f]+\] ", "", lines[0]) if lines else ""
            raise FfmpegFailed(reason or f"ffmpeg ended with status {self._process.returncode}")

    async def stop(self) -> None:
        """End it now, wherever it is."""
        if self._process.returncode is None:
            self._process.kill()
        while await self._out.read(1 << 16):
            pass
        await self.said()

    async def _listen(self, stderr: asyncio.StreamReader) -> None:
        while said := await stderr.read(1_024):
            self._said = (self._said + said)[-_COMPLAINT_BYTES:]


@asynccontextmanager
async def ffmpeg(*arguments: str, level: str = "error") -> AsyncIterator[Ffmpeg]:
    """Run ffmpeg for as long as the block lasts. Raises FfmpegFailed where there is none."""
    command: Sequence[str] = [executable(), "-hide_banner", "-nostdin", "-nostats", "-v", level, *arguments]
    process = await asyncio.create_subprocess_exec(
        *command,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    running = Ffmpeg(process)
    try:
        yield running
    finally:
        await running.stop()
