"""`sluiceway up`: the local stack, a gateway and the workers in the foreground, until Ctrl-C or SIGTERM."""

from __future__ import annotations

import signal
import sys
import time
from types import FrameType
from typing import Annotated

import structlog
import typer

from compose.local.errors import LocalStackError
from compose.local.stack import LocalStack
from compose.logs import set_up_logs
from compose.processes import Processes
from compose.settings import Settings, load
from compose.stream_processes import STREAMS, stream_names

#: How often a server of the stack that died is started again, at least.
_REVIVE_PAUSE_S = 5.0
_REMIND_S = 15.0
_LOOK_S = 0.2

log = structlog.get_logger(__name__)


class _Stopped(BaseException):
    """SIGINT or SIGTERM came; no `except Exception` on the way may take it for a failure."""


def up(
    streams: Annotated[str, typer.Option(help="streams to run, comma-separated")] = ",".join(STREAMS),
) -> None:
    """Run everything on this machine: Kafka, ClickHouse, S3, the model, gateway and workers; data is kept.

    Prints `ready` when all answer. Ctrl-C drains the workers and stops everything. Exits 1 when something cannot start.
    """
    settings = load()
    set_up_logs(settings)
    names = stream_names(streams)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _on_signal)
    try:
        _run(settings, names)
    except _Stopped:
        pass
    except LocalStackError as error:
        print(f"sluiceway: {error}", file=sys.stderr)
        raise typer.Exit(1) from None


def _on_signal(number: int, frame: FrameType | None) -> None:
    # Once: what follows is the clean stop, which a second Ctrl-C must not tear.
    for other in (signal.SIGINT, signal.SIGTERM):
        signal.signal(other, signal.SIG_IGN)
    raise _Stopped


def _run(settings: Settings, streams: list[str]) -> None:
    processes = Processes(settings, streams)
    with LocalStack.of(settings) as stack:
        log.info("stack_started", kafka=stack.kafka.bootstrap, clickhouse=stack.clickhouse.url, s3=stack.s3.url)
        if stack.model:
            log.info("model_is_a_stand_in", model=stack.model.url)
        try:
            processes.start()
            _until_ready(processes)
            log.info("open", url=processes.gateway_url)
            print("ready", flush=True)
            _watch(processes, stack)
        finally:
            processes.stop()


def _until_ready(processes: Processes) -> None:
    remind_at = time.monotonic() + _REMIND_S
    while missing := processes.waiting_for():
        processes.look()
        if time.monotonic() > remind_at:
            log.info("not_ready_yet", waiting_for=", ".join(missing))
            remind_at += _REMIND_S
        time.sleep(_LOOK_S)


def _watch(processes: Processes, stack: LocalStack) -> None:
    revive_at = 0.0
    while True:
        processes.look()
        if time.monotonic() > revive_at:
            for server in stack.servers:
                if not server.alive:
                    log.error("server_ended", server=server.name, log=str(server.log_path))
                    server.start()
                    revive_at = time.monotonic() + _REVIVE_PAUSE_S
        time.sleep(_LOOK_S)
