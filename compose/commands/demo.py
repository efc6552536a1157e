"""`sluiceway demo`: the whole system on a fresh data folder, run on real input with faults, and checked."""

from __future__ import annotations

import asyncio
import dataclasses
import os
import signal
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import Annotated

import psutil
import typer
from rich.console import Console

from compose.clients import clickhouse
from compose.demo.ai import SETTINGS as AI_SETTINGS
from compose.demo.ai import run_ai
from compose.demo.audio import SETTINGS as AUDIO_SETTINGS
from compose.demo.audio import run_audio
from compose.demo.files import SETTINGS as FILES_SETTINGS
from compose.demo.files import run_files
from compose.demo.tables import show_ai, show_audio, show_files, show_traffic
from compose.demo.traffic import run_traffic
from compose.local.errors import LocalStackError
from compose.local.stack import LocalStack
from compose.logs import set_up_logs
from compose.processes import Processes
from compose.settings import Settings, load
from compose.stream_processes import STREAMS

READY_S = 180.0

_console = Console(highlight=False)


def demo(
    log: Annotated[Path | None, typer.Option(help="nginx or Apache access log to replay, moved to end now")] = None,
) -> None:
    """Run every stream on a fresh local stack, compare with a truth computed apart, print `demo: ok` or what is wrong."""
    settings = load()
    set_up_logs(dataclasses.replace(settings, log_level="error"))
    if log is not None and not log.is_file():
        print(f"sluiceway: there is no file {log}", file=sys.stderr)
        raise typer.Exit(2)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        with tempfile.TemporaryDirectory(prefix="sluiceway-demo-") as folder:
            problems = _run(settings, Path(folder), log)
    except (LocalStackError, TimeoutError) as error:
        problems = [str(error)]
    for problem in problems[:20]:
        _console.print(f"demo: {problem}", markup=False, soft_wrap=True)
    if len(problems) > 20:
        _console.print(f"demo: and {len(problems) - 20} more")
    print("demo: ok" if not problems else f"demo: failed, {len(problems)} differences", flush=True)
    raise typer.Exit(0 if not problems else 1)


def _run(settings: Settings, folder: Path, log: Path | None) -> list[str]:
    started = time.monotonic()

    def say(text: str) -> None:
        _console.print(f"[{time.monotonic() - started:5.1f} s] {text}", markup=False, soft_wrap=True)

    say("starting Kafka, ClickHouse and S3 (the first time downloads Kafka's jars)")
    with LocalStack.on_free_ports(folder) as stack:
        own = stack.settings(
            **{
                **_kept(settings),
                **AUDIO_SETTINGS,
                **AI_SETTINGS,
                **FILES_SETTINGS,
                "gateway_port": 0,
                "session_timeout_s": 6.0,
                "log_level": "error",
            }
        )
        processes = Processes(own, list(STREAMS))
        try:
            processes.start()
            _until_ready(processes, say)
            return asyncio.run(_streams(processes, log, folder, say))
        finally:
            processes.stop()


def _kept(settings: Settings) -> dict[str, object]:
    """The user's settings of the traffic stream count in the demo too; those of places do not."""
    names = (field.name for field in dataclasses.fields(settings))
    return {
        name: getattr(settings, name) for name in names if name.startswith("traffic_") and name != "traffic_templates"
    }


def _until_ready(processes: Processes, say: object) -> None:
    deadline = time.monotonic() + READY_S
    while missing := processes.waiting_for():
        if time.monotonic() > deadline:
            raise TimeoutError(f"not ready after {READY_S:.0f} s: {', '.join(missing)}")
        processes.look()
        time.sleep(0.2)


async def _streams(processes: Processes, log: Path | None, folder: Path, say: object) -> list[str]:
    assert callable(say)
    settings, url = processes.settings, processes.gateway_url
    sink = clickhouse(settings)
    try:
        traffic = await run_traffic(settings, sink, log, folder, lambda: _kill(processes, "traffic"), say)
        audio = await run_audio(processes, sink, folder, lambda name: _kill(processes, name), say)
        ai = await run_ai(settings, url, sink, lambda: _kill(processes, "ai"), say, _write)
        files = await run_files(settings, url, sink, folder, lambda program: _kill(processes, "files", program), say)
    finally:
        await sink.close()
    say("everything is compared")
    show_traffic(_console, traffic)
    show_audio(_console, audio)
    show_ai(_console, ai)
    show_files(_console, files)
    return [*traffic.problems, *audio.problems, *ai.problems, *files.problems]


def _write(text: str) -> None:
    _console.print(text, end="", markup=False, soft_wrap=True)


def _kill(processes: Processes, name: str, program: str = "") -> str:
    """SIGKILL to the gateway, or to the process that folds the stream `name` and to all that it has started, such as
    converters; what watches over it starts it again. Says what was ended: nothing while none of them runs `program`."""
    for child in processes.children:
        if child.process is None:
            continue
        if child.name == name:
            os.kill(child.process.pid, signal.SIGKILL)
            return f"the {name} (pid {child.process.pid})"
        if child.name == f"worker {name}":
            for process in psutil.Process(child.process.pid).children(recursive=True):
                if "--child" in process.cmdline():
                    below = process.children(recursive=True)
                    if program and not any(program in _program(child) for child in below):
                        return ""
                    for killed in (process, *below):
                        with suppress(psutil.NoSuchProcess):
                            killed.kill()
                    which = f", {program} among them" if program else ""
                    others = f" and the {len(below)} processes that work for it{which}" if below else ""
                    return f"the {name} worker (pid {process.pid}){others}"
    raise LocalStackError(f"no process of {name} was found to kill")


def _program(process: psutil.Process) -> str:
    """The name of what it runs; nothing once it has ended."""
    try:
        return Path(process.exe()).name
    except psutil.Error:
        return ""
