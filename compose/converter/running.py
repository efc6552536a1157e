"""ffmpeg as a child that is held to limits: its progress read as it comes, its complaints kept, its end certain."""

from __future__ import annotations

import asyncio
import os
import re
import signal
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path

from compose.converter.limits import ConverterLimits, limited
from compose.ffmpeg import FfmpegFailed, executable
from streams.files.converting import ConversionFailed

#: Bytes that are kept of what it says, at the beginning and at the end: a source may have a line, or some, for each of its
#: streams.
_HEAD_BYTES, _TAIL_BYTES = 256 << 10, 2_048
_CPU = ConversionFailed("cpu_limit", "the conversion took more CPU time than is allowed")
_SIZE = ConversionFailed("result_too_large", "the result is larger than is allowed")
_MEMORY = ConversionFailed("memory_limit", "the conversion took more memory than is allowed")
_DISK = ConversionFailed("disk_full", "the converter's disk is full", again=True)
#: By what it says when it fails; it catches SIGXCPU (24) and goes.
_SAID = {
    "received signal 24": _CPU,
    "File too large": _SIZE,
    "Cannot allocate memory": _MEMORY,
    "No space left on device": _DISK,
}
_KILLED = {signal.SIGXCPU: _CPU, signal.SIGXFSZ: _SIZE}


class Run:
    """ffmpeg under way."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        assert process.stdout is not None and process.stderr is not None
        self._process = process
        self._out = process.stdout
        self._head = self._tail = b""
        self._listening = asyncio.create_task(self._listen(process.stderr))

    async def progress(self) -> AsyncIterator[int]:
        """Milliseconds of the result that are written, again and again until the end."""
        played_ms = 0
        while line := await self._out.readline():
            name, _, value = line.decode("ascii", "replace").strip().partition("=")
            if name == "out_time_us" and value.isdigit():
                played_ms = max(played_ms, int(value) // 1_000)
            elif name == "progress":
                yield played_ms

    async def said(self) -> str:
        """Wait for the end; the first of what it had to say, and the last if that is much."""
        while await self._out.read(1 << 16):
            pass
        await self._process.wait()
        await self._listening
        return (self._head + self._tail).decode(errors="replace")

    def check(self, said: str) -> None:
        """Raise ConversionFailed if it failed."""
        self.check_alive()
        if not self._process.returncode:
            return
        for words, failed in _SAID.items():
            if words in said:
                raise failed
        raise ConversionFailed("damaged", f"ffmpeg failed: {reason(said)}")

    def check_alive(self) -> None:
        """Raise ConversionFailed if it did not end by itself."""
        code = self._process.returncode or 0
        if -code in _KILLED:
            raise _KILLED[signal.Signals(-code)]
        # Killed from outside is nobody's fault; a crash of ffmpeg may be the source's own.
        if code == -signal.SIGKILL:
            raise ConversionFailed("killed", "ffmpeg was killed", again=True)

    async def stop(self) -> None:
        """End it now, wherever it is."""
        if self._process.returncode is None:
            with suppress(ProcessLookupError):
                self._process.kill()
        await self.said()

    async def _listen(self, stderr: asyncio.StreamReader) -> None:
        while said := await stderr.read(4_096):
            room = _HEAD_BYTES - len(self._head)
            self._head += said[:room]
            self._tail = (self._tail + said[room:])[-_TAIL_BYTES:]


@asynccontextmanager
async def running(arguments: Sequence[str], source: Path, limits: ConverterLimits) -> AsyncIterator[Run]:
    """ffmpeg for as long as the block lasts, `wall_s` at most, with the source as its standard input.

    Raises ConversionFailed.
    """
    try:
        program = executable()
    except FfmpegFailed as error:
        raise ConversionFailed("no_ffmpeg", str(error), again=True) from None
    command = [program, "-hide_banner", "-nostdin", "-nostats", "-progress", "pipe:1", *arguments]
    with source.open("rb") as opened:
        process = await asyncio.create_subprocess_exec(
            *limited(command, limits),
            stdin=opened,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            # Nothing of our environment, which holds secrets.
            env={"PATH": os.defpath, "LC_ALL": "C"},
        )
    run = Run(process)
    try:
        async with asyncio.timeout(limits.wall_s):
            yield run
    except TimeoutError:
        raise ConversionFailed(
            "time_limit", f"the conversion took longer than the {limits.wall_s:g} s that are allowed"
        ) from None
    finally:
        # Seen to its end even when this is cancelled, more than once if need be.
        await asyncio.shield(asyncio.create_task(run.stop()))


def reason(said: str) -> str:
    """ffmpeg's own word of what went wrong, without addresses of its memory."""
    lines = [re.sub(r"^(\[[^]]* @ 0x[0-9a-f]+\] )+", "", line).strip() for line in said.splitlines()]
    faults = [line for line in lines if re.search(r"rror|nvalid|not found|prematurely|could not|ailed", line)]
    return " ".join((faults or lines[-1:] or ["ffmpeg said nothing"])[0].split())[:300]
