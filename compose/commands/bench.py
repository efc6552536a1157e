"""`sluiceway bench`: how fast and how soon, measured on this machine."""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Annotated, Any

import structlog
import typer
from rich.console import Console

from compose.bench.cores import TooFewCores, reserve_core
from compose.bench.full_job import Load
from compose.bench.latency import measure_latency
from compose.bench.report import show
from compose.bench.result import BenchFailed, Line, Result
from compose.bench.side_by_side import FULL_JOB, NAMES, Plan, run
from compose.local.errors import LocalStackError
from compose.settings import load

QUICK_EVENTS = 100_000
_TUNING = ("flush_", "rollup_", "dedup_", "traffic_")

bench = typer.Typer(no_args_is_help=True, help="Measure the system on this machine.", rich_markup_mode=None)

JsonOnly = Annotated[bool, typer.Option("--json", help="JSON lines only: no progress, no table")]


@bench.command()
def traffic(
    events: Annotated[int, typer.Option(help="events to fold")] = 2_000_000,
    paths: Annotated[int, typer.Option(help="distinct paths of the first run")] = 300,
    duplicates: Annotated[float, typer.Option(help="share of events that repeat an earlier one")] = 0.0,
    systems: Annotated[str, typer.Option(help=f"comma-separated, of: {', '.join(NAMES)}")] = ",".join(NAMES),
    quick: Annotated[bool, typer.Option(help=f"a smoke test: {QUICK_EVENTS:,} events, few for the others")] = False,
    json_only: JsonOnly = False,
) -> None:
    """Events a second on one core: the full traffic job, and other systems doing less of it.

    One JSON line a system on standard output, a table on standard error.
    """
    names = [name.strip() for name in systems.split(",") if name.strip()]
    if unknown := set(names) - set(NAMES):
        print(
            f"sluiceway: no system is called {', '.join(sorted(unknown))}; there are: {', '.join(NAMES)}",
            file=sys.stderr,
        )
        raise typer.Exit(2)
    plan = Plan(
        Load(QUICK_EVENTS if quick else events, paths, duplicates), names, share=0.1 if quick else 1.0, tuning=_tuning()
    )
    console = Console(stderr=True, highlight=False, quiet=json_only)
    with _measuring() as (folder, core):
        lines: list[Line] = []
        for line in run(plan, folder, core, console.print):
            lines.append(line)
            print(line.line(), flush=True)
        show(
            console, next((line for line in lines if line.system == FULL_JOB and isinstance(line, Result)), None), lines
        )


@bench.command()
def latency(
    rate: Annotated[int, typer.Option(help="events a second")] = 20_000,
    seconds: Annotated[float, typer.Option(help="how long")] = 60.0,
    json_only: JsonOnly = False,
) -> None:
    """Seconds from Kafka's acknowledgement of an event to its being visible in path_stats_hourly, at a steady rate."""
    console = Console(stderr=True, highlight=False, quiet=json_only)
    with _measuring() as (folder, core):
        found = measure_latency(folder, core, rate, seconds, console.print, _tuning())
        print(json.dumps(found), flush=True)


def _tuning() -> dict[str, Any]:
    """The user's settings of how a worker works; those of places are the bench's own."""
    settings = load()
    names = (field.name for field in fields(settings))
    return {name: getattr(settings, name) for name in names if name.startswith(_TUNING)}


@contextmanager
def _measuring() -> Iterator[tuple[Path, int]]:
    """A folder for the stacks and the core for what is measured; known errors become one line and exit code 1."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(30))
    try:
        with tempfile.TemporaryDirectory(prefix="sluiceway-bench-") as folder:
            yield Path(folder), reserve_core()
    except (LocalStackError, TooFewCores, BenchFailed) as error:
        print(f"sluiceway: {error}", file=sys.stderr)
        raise typer.Exit(1) from None
