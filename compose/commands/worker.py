"""`sluiceway worker`: one process a stream under a supervisor."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from compose.logs import set_up_logs
from compose.settings import load
from compose.stream_processes import STREAMS, settings_of_each, stop_within_s, stream_names
from compose.supervisor import Child, Supervisor, die_with_parent


def worker(
    streams: Annotated[str, typer.Option(help="streams to run, comma-separated")] = ",".join(STREAMS),
    child: Annotated[bool, typer.Option(hidden=True, help="run the one stream in this process")] = False,
) -> None:
    """Fold streams: one process each, started again when it dies; SIGTERM drains and commits."""
    settings = load()
    set_up_logs(settings)
    names = stream_names(streams)
    if child:
        die_with_parent()
        # The supervisor does without the streams, and is up in a moment.
        from compose.worker import run_stream

        run_stream(names[0], settings)
        return
    command = [sys.executable, "-m", "compose.cli", "worker", "--child", "--streams"]
    children = [
        Child(f"worker {name}", [*command, name], own.environ()) for name, own in settings_of_each(settings, names)
    ]
    sys.exit(Supervisor(children, stop_within_s(settings) + 0.3).run())
