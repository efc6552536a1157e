"""The bench's table and its verdicts against the goals."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rich.console import Console
from rich.table import Table

from compose.bench.result import Line, Quoted, Result, Skipped
from compose.bench.systems import QUOTED, SYSTEMS

GOAL_EVENTS_PER_S = 150_000
GOAL_RSS_BYTES = 600_000_000
GOAL_OVER_JVM = 2.5
GOAL_OVER_FAUST = 60
#: Past this, others used the measured core too, and the figure is too low.
QUIET_SHARE = 0.05


@dataclass(frozen=True)
class Verdict:
    """One goal, what was measured, and whether it is met."""

    goal: str
    measured: str
    met: bool


def verdicts(own: Result, lines: Sequence[Line]) -> list[Verdict]:
    """The goals of the full job that these lines can decide."""
    rate = own.events_per_s
    found = [
        Verdict(f"full job at {GOAL_EVENTS_PER_S:,} events/s", f"{rate:,.0f}", rate >= GOAL_EVENTS_PER_S),
        Verdict(
            f"under {GOAL_RSS_BYTES / 1e6:.0f} MB with {own.more['ids']:,} ids held",
            f"{own.rss_peak_bytes / 1e6:.0f} MB",
            own.rss_peak_bytes < GOAL_RSS_BYTES,
        ),
    ]
    for quoted in QUOTED:
        found.append(_ratio(rate, quoted.events_per_s, quoted.system, GOAL_OVER_JVM))
    faust = next((line for line in lines if isinstance(line, Result) and line.system == _title("faust")), None)
    if faust is not None:
        found.append(_ratio(rate, faust.events_per_s, faust.system, GOAL_OVER_FAUST))
    return found


def _ratio(rate: float, other: float, system: str, goal: float) -> Verdict:
    return Verdict(f"{goal:g} x {system}", f"{rate / other:.1f} x", rate >= goal * other)


def _title(name: str) -> str:
    return next(system.title for system in SYSTEMS if system.name == name)


def show(console: Console, own: Result | None, lines: Sequence[Line]) -> None:
    """All lines, and the verdicts when the full job was measured."""
    table = Table("system", "job", title="on one core")
    for name in ("events", "events/s", "CPU us", "peak MB", "full job"):
        table.add_column(name, justify="right", no_wrap=True)
    for line in lines:
        table.add_row(*_cells(line, own))
    console.print(table)
    for line in lines:
        if isinstance(line, Skipped):
            console.print(f"SKIPPED {line.system}: {line.reason}", style="bold", markup=False)
    if own is None:
        return
    for verdict in verdicts(own, lines):
        console.print(f"{'met ' if verdict.met else 'MISSED'}  {verdict.goal}: {verdict.measured}")
    share = own.more["core_share_of_others"]
    if share > QUIET_SHARE:
        console.print(f"[bold]others used {share:.0%} of the measured core: run it again on a quiet machine[/bold]")


def _cells(line: Line, own: Result | None) -> list[str]:
    if isinstance(line, Skipped):
        return [line.system, line.job, "SKIPPED", *[""] * 4]
    times = "" if own is None or line is own else f"{own.events_per_s / line.events_per_s:.2f} x"
    if isinstance(line, Quoted):
        return [f"{line.system} (quoted)", line.job, "", f"{line.events_per_s:,.0f}", "", "", times]
    measured = [f"{line.cpu_s / line.events * 1e6:.2f}", f"{line.rss_peak_bytes / 1e6:.0f}"]
    return [line.system, line.job, f"{line.events:,}", f"{line.events_per_s:,.0f}", *measured, times]
