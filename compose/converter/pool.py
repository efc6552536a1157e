"""Conversions in processes of their own, a few at once: none can harm another, or its coordinator, and each can be ended."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from contextlib import suppress
from pathlib import Path
from urllib.parse import urlsplit

import msgspec
import structlog

from compose.converter.limits import ConverterLimits
from compose.converter.scratch import Scratch
from compose.converter.words import Done, Going, Work, heard
from compose.local.process import dying_with_parent
from streams.files.converting import ConversionFailed, ConvertRequest, ConvertResult, OnProgress

log = structlog.get_logger(__name__)

#: Of our environment a child gets these; the rest holds secrets.
_ENVIRONMENT = ("PATH", "HOME", "LC_ALL", "SSL_CERT_FILE", "SSL_CERT_DIR", "IMAGEIO_FFMPEG_EXE")
_COMPLAINT_BYTES = 4_096
#: A result's line tells all of its parts.
_LINE_BYTES = 1 << 20


class ProcessConverter:
    """Implements `streams.files.converting.Converter`. URLs must lead to the store, which answers at `store_url`; a foreign
    source is taken with `urls` only, from public addresses and `networks` (checked by the caller).

    At most `slots` conversions run at once; further ones wait.
    """

    def __init__(
        self,
        scratch: Scratch,
        limits: ConverterLimits,
        store_url: str,
        slots: int,
        urls: bool = False,
        networks: str = "",
    ) -> None:
        self._scratch = scratch
        self._limits = limits
        self._store = _origin(store_url)
        self._urls = urls
        self._networks = networks
        self._slots = asyncio.Semaphore(slots)

    @property
    def busy(self) -> bool:
        """Whether a conversion would have to wait."""
        return self._slots.locked()

    def close(self) -> None:
        """Remove the scratch folder, once nothing is under way."""
        self._scratch.close()

    async def convert(self, request: ConvertRequest, on_progress: OnProgress) -> ConvertResult:
        """See `Converter`."""
        if request.foreign and not self._urls:
            raise ConversionFailed("url_not_allowed", "this converter takes no sources by URL")
        for url in (*(() if request.foreign else (request.url,)), request.upload_url, *request.parts):
            if _origin(url) != self._store:
                raise ConversionFailed("foreign_url", "a URL does not lead to this converter's store")
        async with self._slots:
            try:
                with self._scratch.job() as folder:
                    result = await self._in_child(request, folder, on_progress)
            except OSError as error:
                message = f"the converter cannot work: {error.strerror or error}"
                raise ConversionFailed("converter", message, again=True) from None
        log.info("converted", key=request.upload_key, size=result.size, duration_ms=result.duration_ms)
        return result

    async def _in_child(self, request: ConvertRequest, folder: Path, on_progress: OnProgress) -> ConvertResult:
        command = dying_with_parent([sys.executable, "-m", "compose.converter.child"], signal.SIGKILL)
        process = await asyncio.create_subprocess_exec(
            *command,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            limit=_LINE_BYTES,
            # A session and so a group of its own, which ffmpeg is in too: they are ended as one.
            start_new_session=True,
            env={name: os.environ[name] for name in _ENVIRONMENT if name in os.environ},
        )
        complaints = asyncio.create_task(_complaints(process))
        try:
            return await listen(
                process, Work(request, str(folder), self._limits, self._networks), complaints, on_progress
            )
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            await asyncio.shield(asyncio.gather(process.wait(), complaints))


async def listen(
    process: asyncio.subprocess.Process, work: Work, complaints: asyncio.Task[str], on_progress: OnProgress
) -> ConvertResult:
    """Tell a child what to do, and hear what comes of it. Raises ConversionFailed."""
    assert process.stdin is not None and process.stdout is not None
    # Of a process that has died meanwhile; uvloop has the second for a pipe that is closed already.
    with suppress(ConnectionError, RuntimeError):
        process.stdin.write(msgspec.json.encode(work))
        await process.stdin.drain()
        process.stdin.close()
    # Of a process that was killed while it spoke, the last line is not whole.
    while (text := await process.stdout.readline()).endswith(b"\n"):
        word = heard(text)
        if isinstance(word, Going):
            on_progress(word.stage, word.share)
        elif isinstance(word, Done):
            return word.result
        else:
            raise word.error()
    code = await process.wait()
    log.warning("conversion_died", key=work.request.upload_key, code=code, said=await complaints)
    raise ConversionFailed("killed", f"the converter's process ended with code {code}", again=True)


async def _complaints(process: asyncio.subprocess.Process) -> str:
    """The last that it had to say."""
    assert process.stderr is not None
    said = b""
    while more := await process.stderr.read(1_024):
        said = (said + more)[-_COMPLAINT_BYTES:]
    return said.decode(errors="replace")


def _origin(url: str) -> tuple[str, str]:
    parts = urlsplit(url)
    return parts.scheme, parts.netloc
