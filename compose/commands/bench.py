"""`sluiceway bench`: how fast and how soon, measured on this machine."""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import fields, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import structlog
import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from compose.bench import ai as ai_bench
from compose.bench.ai_report import show_ai
from compose.bench.audio import audio_system, expected_s, measure_audio
from compose.bench.audio_report import Found, show_audio
from compose.bench.cores import TooFewCores, reserve_core
from compose.bench.files import Case, files_stack, measure_files
from compose.bench.files_report import WAYS, files_line, show_files
from compose.bench.files_report import Found as FilesFound
from compose.bench.full_job import Load
from compose.bench.latency import measure_latency
from compose.bench.report import show
from compose.bench.result import BenchFailed, Line, Result
from compose.bench.side_by_side import FULL_JOB, NAMES, Plan, run
from compose.local.errors import LocalStackError
from compose.settings import load

QUICK_EVENTS = 100_000
_TUNING = ("flush_", "rollup_", "dedup_", "traffic_", "audio_", "ai_flush_", "ai_block_")
#: Long enough for every session to store its first segment.
_FIND_S = 75.0
_FIND_RUNS = 4
#: What a gateway takes by default.
_FILE_MB_MAX = 2_048

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
    with _measuring() as folder:
        core = reserve_core()
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
    with _measuring() as folder:
        found = measure_latency(folder, reserve_core(), rate, seconds, console.print, _tuning())
        print(json.dumps(found), flush=True)


@bench.command()
def audio(
    sessions: Annotated[int, typer.Option(help="live sessions, of 7.8 chunks a second each", min=1)] = 500,
    seconds: Annotated[float, typer.Option(help="how long all of them send", min=1)] = 180.0,
    find_most: Annotated[
        bool, typer.Option("--find-most", help=f"also look for the most sessions that hold, {_FIND_S:g} s a try")
    ] = False,
    json_only: JsonOnly = False,
) -> None:
    """Live audio through one gateway and one worker, with the whole stack on the same two cores.

    One line of JSON a run on standard output, a table on standard error.
    """
    console = Console(stderr=True, highlight=False, quiet=json_only)
    with _measuring() as folder:
        run = partial(_audio_run, folder, console)
        found = run("live", sessions, seconds)
        if find_most:
            _find_most(run, found, console)


@bench.command()
def ai(
    tasks: Annotated[int, typer.Option(help="tasks whose answers take 100 ms", min=1)] = ai_bench.Plan.tasks,
    quick: Annotated[bool, typer.Option(help="a smoke test: few tasks, and a model that is less slow")] = False,
    without: Annotated[str, typer.Option(help=f"comma-separated, of: {', '.join(ai_bench.MORE)}")] = "",
    json_only: JsonOnly = False,
) -> None:
    """AI tasks through one worker with the stand-in model: tasks a second beside Celery on Redis, batches of 3 against one by
    one, how soon a token is told, and how soon a gateway answers a submit.

    One line of JSON a measurement on standard output, a table on standard error.
    """
    console = Console(stderr=True, highlight=False, quiet=json_only)
    left_out = [name.strip() for name in without.split(",") if name.strip()]
    if unknown := set(left_out) - set(ai_bench.MORE):
        print(
            f"sluiceway: nothing is called {', '.join(sorted(unknown))}; there are: {', '.join(ai_bench.MORE)}",
            file=sys.stderr,
        )
        raise typer.Exit(2)
    plan = ai_bench.Plan(tasks=tasks, tuning=_tuning())
    if quick:
        plan = replace(plan, tasks=min(tasks, 100), slow_ms=400, batches=1, watched=4)
        plan = replace(plan, submits_per_s=50, seconds=1.0, warm_up_s=0.5)
    lines: list[Line] = []
    figures: list[dict[str, Any]] = []
    with _measuring() as folder, ai_bench.ai_stack(folder) as stack:
        for found in ai_bench.measure(stack, plan, folder, left_out):
            if isinstance(found, dict):
                figures.append(found)
            else:
                lines.append(found)
            print(json.dumps(found) if isinstance(found, dict) else found.line(), flush=True)
    show_ai(console, lines, figures)


@bench.command()
def files(
    sizes: Annotated[str, typer.Option(help="comma-separated sizes of single files, MB")] = "10,100,500",
    users: Annotated[int, typer.Option(help="users who upload at once, a file of their own each; 0: none", min=0)] = 20,
    user_mb: Annotated[int, typer.Option(help="size of each of their files, MB", min=1, max=_FILE_MB_MAX)] = 25,
    json_only: JsonOnly = False,
) -> None:
    """Uploads by presigned URL, straight to the object store, against relays through the gateway, which take turns: seconds,
    and the gateway's CPU, memory and bytes.

    One line of JSON on standard output, a table on standard error.
    """
    try:
        cases = [Case(int(size)) for size in sizes.split(",") if size.strip()]
    except ValueError:
        cases = [Case(0)]
    if not all(1 <= case.size_mb <= _FILE_MB_MAX for case in cases):
        print(f"sluiceway: --sizes are whole MB from 1 to {_FILE_MB_MAX}, as 10,100,500", file=sys.stderr)
        raise typer.Exit(2)
    if users:
        cases.append(Case(user_mb, users))
    if not cases:
        print("sluiceway: nothing to measure: no --sizes, and no --users", file=sys.stderr)
        raise typer.Exit(2)
    console = Console(stderr=True, highlight=False, quiet=json_only)
    columns = TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn()
    found: list[FilesFound] = []
    with _measuring() as folder, Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("starting", total=len(WAYS) * sum(case.rounds for case in cases))

        def progress(turn: str) -> None:
            bar.update(task, description=turn, advance=0 if bar.tasks[0].description == "starting" else 1)

        with files_stack(folder, cases) as stack:
            found.extend(measure_files(stack, cases, progress))
    print(files_line(found), flush=True)
    show_files(console, found)


def _audio_run(folder: Path, console: Console, prefix: str, sessions: int, seconds: float) -> Found:
    """One measurement of a system of its own: what a worker held before stays in its memory for a while."""
    sends_s = expected_s(sessions, seconds)
    columns = TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[closed]}"), TimeElapsedColumn()
    with (
        audio_system(folder / prefix, _tuning()) as system,
        Progress(*columns, console=console, transient=True) as bar,
    ):
        task = bar.add_task(f"{sessions} sessions", total=sends_s, closed="")

        def progress(phase: str, so_far_s: float, closed: int) -> None:
            said = f"{closed} of {sessions} closed" if phase == "closing" else phase
            bar.update(task, completed=min(sends_s, so_far_s), closed=said)

        found = measure_audio(system, prefix, sessions, seconds, progress)
    print(found.line(), flush=True)
    show_audio(console, found)
    return found


def _find_most(run: Callable[[str, int, float], Found], first: Found, console: Console) -> None:
    """Between the most sessions that held and the fewest that did not, halve the way."""
    most, too_many = (first.sessions, None) if first.met else (0, first.sessions)
    for number in range(_FIND_RUNS):
        sessions = most * 3 // 2 if too_many is None else (most + too_many) // 2
        if sessions <= most * 21 // 20:
            break
        found = run(f"try{number}", sessions, _FIND_S)
        most, too_many = (sessions, too_many) if found.met else (most, sessions)
    print(json.dumps({"measurement": "audio most", "sessions": most}), flush=True)
    console.print(f"the most sessions that held: {most}")


def _tuning() -> dict[str, Any]:
    """The user's settings of how a worker works; those of places are the bench's own."""
    settings = load()
    names = (field.name for field in fields(settings))
    return {name: getattr(settings, name) for name in names if name.startswith(_TUNING)}


@contextmanager
def _measuring() -> Iterator[Path]:
    """A folder for the stacks; known errors become one line and exit code 1."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(30))
    try:
        with tempfile.TemporaryDirectory(prefix="sluiceway-bench-") as folder:
            yield Path(folder)
    except (LocalStackError, TooFewCores, BenchFailed) as error:
        print(f"sluiceway: {error}", file=sys.stderr)
        raise typer.Exit(1) from None
