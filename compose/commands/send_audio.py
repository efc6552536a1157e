"""`sluiceway send-audio`: a file as an audio session over the gateway's WebSocket, compared with what was recorded."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import re
import secrets
import signal
import sys
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from compose.audio_client import AudioSender, SendFailed, Sent
from compose.audio_source import SourceError, probe, read_chunks
from compose.logs import set_up_logs
from compose.settings import Settings, load
from topics.audio import Format, Open, Store, Tier
from topics.audio_socket import OpenMessage
from topics.ids import ID_RULE, valid_id
from topics.malformed import Malformed

FAILED = 1
UNREADABLE = 2
SPEECH_RATE = 16_000


def send_audio(
    file: Annotated[str, typer.Argument(help="any file that ffmpeg reads")],
    realtime: Annotated[
        bool, typer.Option("--realtime/--fast", help="as fast as it plays, or as fast as it goes")
    ] = False,
    session: Annotated[str, typer.Option(help="session id; the same again goes on where it was")] = "",
    user: Annotated[str, typer.Option(help="whose session it is")] = "",
    format: Annotated[Format, typer.Option(help="what the chunks are")] = Format.PCM_S16LE,
    rate: Annotated[int, typer.Option(help="samples a second; 16000 for PCM, the file's own for others")] = 0,
    channels: Annotated[int, typer.Option(help="channels; 1 for PCM, the file's own for others")] = 0,
    tier: Annotated[Tier, typer.Option(help="how long the session's window is")] = Tier.STANDARD,
    store: Annotated[Store | None, typer.Option(help="what the recording is kept as; PCM becomes flac")] = None,
    url: Annotated[str, typer.Option(help="the gateway; by default where the settings have it")] = "",
    give_up: Annotated[float, typer.Option(help="seconds without progress before it gives up", min=1.0)] = 120.0,
    as_json: Annotated[bool, typer.Option("--json", help="the result as one JSON object")] = False,
) -> None:
    """Stream a file as an audio session. It connects again and resumes by itself; Ctrl-C closes the session with what was
    sent.

    Exits 1 when the session could not be sent, or the recording is not what was sent; 2 when the file cannot be read.
    """
    settings = load()
    set_up_logs(dataclasses.replace(settings, log_level="warning"))
    session_id = session or _session_name(file)
    try:
        rate, channels = asyncio.run(_shape(Path(file), format, rate, channels))
    except SourceError as failure:
        raise _unreadable(failure) from None
    opened = OpenMessage(format, rate, channels, user, tier, store)
    checked = opened.opened(session_id) if valid_id(session_id) else Malformed("", f"--session: {ID_RULE}")
    if isinstance(checked, Malformed):
        raise typer.BadParameter(checked.error)
    source = _paced(Path(file), checked, realtime)
    sender = AudioSender(url or _url(settings), session_id, opened, source, api_key=settings.api_key, give_up_s=give_up)
    started = time.monotonic()
    try:
        asyncio.run(_send(sender))
        error = _difference(sender.sent)
    except SendFailed as failure:
        error = str(failure)
    except SourceError as failure:
        raise _unreadable(failure) from None
    seconds = time.monotonic() - started
    if as_json:
        print(json.dumps(_summary(sender.sent, seconds, error)))
    else:
        _print(sender.sent, seconds, error)
    raise typer.Exit(FAILED if error else 0)


def _unreadable(failure: SourceError) -> typer.Exit:
    print(f"sluiceway: cannot read {failure}", file=sys.stderr)
    return typer.Exit(UNREADABLE)


async def _shape(path: Path, format: Format, rate: int, channels: int) -> tuple[int, int]:
    """Rate and channels: as asked, or as the file has them, or those of speech."""
    found = await probe(path)
    if format is Format.PCM_S16LE:
        return rate or SPEECH_RATE, channels or 1
    return rate or found.rate, channels or found.channels


async def _paced(path: Path, opened: Open, realtime: bool) -> AsyncGenerator[bytes, None]:
    """The file's chunks; with `realtime` each when its sound begins there."""
    started = time.monotonic()
    async with aclosing(read_chunks(path, opened.format, opened.rate, opened.channels)) as chunks:
        async for chunk in chunks:
            wait_s = started + chunk.at_ms / 1000 - time.monotonic()
            if realtime and wait_s > 0:
                await asyncio.sleep(wait_s)
            yield chunk.data


async def _send(sender: AudioSender) -> None:
    loop = asyncio.get_running_loop()
    task = asyncio.current_task()
    assert task is not None
    interrupted = False

    def on_signal() -> None:
        nonlocal interrupted
        if interrupted:
            task.cancel()
        interrupted = True
        sender.stop()

    loop.add_signal_handler(signal.SIGINT, on_signal)
    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    shown = sys.stderr.isatty()
    with Progress(*columns, console=Console(stderr=True), transient=True, disable=not shown) as bars:
        bar = bars.add_task(_told(sender.sent), total=None)
        sending = asyncio.create_task(sender.run())
        try:
            while not sending.done():
                await asyncio.wait([sending], timeout=0.2)
                bars.update(bar, description=_told(sender.sent))
            sending.result()
        except asyncio.CancelledError:
            raise SendFailed("interrupted: the session is left open, and the same --session goes on with it") from None
        finally:
            sending.cancel()
            await asyncio.gather(sending, return_exceptions=True)


def _told(sent: Sent) -> str:
    return f"{sent.bytes / 1e6:,.1f} MB, {sent.chunks:,} chunks; durable to {sent.durable}, stored to {sent.stored}"


def _url(settings: Settings) -> str:
    host = "127.0.0.1" if settings.gateway_host in ("0.0.0.0", "::") else settings.gateway_host
    return f"http://{f'[{host}]' if ':' in host else host}:{settings.gateway_port}"


def _session_name(file: str) -> str:
    stem = re.sub(r"[^A-Za-z0-9._-]+", "-", Path(file).stem)[:100].strip("-.")
    return f"{stem or 'audio'}-{secrets.token_hex(4)}"


def _difference(sent: Sent) -> str:
    if sent.chunks and sent.recorded_md5 != sent.md5:
        return f"the recording is not what was sent: its MD5 is {sent.recorded_md5}, that of the audio {sent.md5}"
    return ""


def _summary(sent: Sent, seconds: float, error: str) -> dict[str, Any]:
    return {
        "session_id": sent.session_id,
        "ok": not error,
        "chunks": sent.chunks,
        "bytes": sent.bytes,
        "md5": sent.md5 or None,
        "recording": sent.recording,
        "recorded_md5": sent.recorded_md5,
        "connections": sent.connections,
        "seconds": round(seconds, 2),
        "trouble": sent.trouble[-10:],
        "error": error or None,
    }


def _print(sent: Sent, seconds: float, error: str) -> None:
    console = Console(highlight=False, soft_wrap=True)
    console.print(
        f"session {sent.session_id}: {sent.chunks:,} chunks, {sent.bytes:,} bytes in {seconds:.1f} s, "
        f"{sent.connections} connection{'s' * (sent.connections != 1)}"
    )
    if sent.recording:
        console.print(f"recording {sent.recording}")
    if error:
        console.print(f"problem: {error}", style="bold red", markup=False)
    elif sent.recording:
        console.print(f"MD5 {sent.recorded_md5}: what was sent is what was recorded")
    else:
        console.print("the session had no audio, and has no recording")
