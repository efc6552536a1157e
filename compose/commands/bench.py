"""`sluiceway bench`: how fast and how soon, measured on this machine."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from compose.bench.cores import TooFewCores, reserve_core
from compose.bench.full_job import BenchFailed, Load, measure_full_job
from compose.local.errors import LocalStackError

bench = typer.Typer(no_args_is_help=True, help="Measure the system on this machine.")


@bench.command()
def traffic(
    events: Annotated[int, typer.Option(help="events to fold")] = 2_000_000,
    paths: Annotated[int, typer.Option(help="distinct paths")] = 300,
    duplicates: Annotated[float, typer.Option(help="share of events that repeat an earlier one")] = 0.0,
) -> None:
    """Events a second of the traffic stream on one core, from first fetch to all visible in ClickHouse."""
    console = Console(stderr=True, highlight=False)
    try:
        core = reserve_core()
        with tempfile.TemporaryDirectory(prefix="sluiceway-bench-") as folder:
            result = measure_full_job(Path(folder), core, Load(events, paths, duplicates), console.print)
            print(result.line(), flush=True)
    except (LocalStackError, TooFewCores, BenchFailed) as error:
        print(f"sluiceway: {error}", file=sys.stderr)
        raise typer.Exit(1) from None


@bench.command()
def latency() -> None:
    """Not yet."""
