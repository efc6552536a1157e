"""What a run of `sluiceway bench ai` found, as a table and as goals met and missed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from compose.bench.report import Verdict
from compose.bench.result import Line, Result, Skipped

#: About three times: so much of a batch's time may be the system's own.
GOAL_BATCHES = 2.7
GOAL_SUBMIT_P99_S = 0.050


def show_ai(console: Console, lines: Sequence[Line], figures: Sequence[dict[str, Any]]) -> None:
    """The systems side by side, then the other measurements, and each goal."""
    table = Table("system", "job", title="AI tasks, all processes on the same two cores")
    for name in ("tasks", "tasks/s", "worker CPU ms", "peak MB"):
        table.add_column(name, justify="right", no_wrap=True)
    for line in lines:
        table.add_row(*_cells(line))
    console.print(table)
    for line in lines:
        if isinstance(line, Skipped):
            console.print(f"SKIPPED {line.system}: {line.reason}", style="bold", markup=False)
    for verdict in verdicts(lines, figures):
        console.print(f"{'met ' if verdict.met else 'MISSED'}  {verdict.goal}: {verdict.measured}")
    for found in figures:
        if found["measurement"] == "ai tokens":
            p50, p99 = found["p50_s"] * 1000, found["p99_s"] * 1000
            console.print(f"a token said to told in ai.results.v1, p50 / p99: {p50:.0f} / {p99:.0f} ms")


def verdicts(lines: Sequence[Line], figures: Sequence[dict[str, Any]]) -> list[Verdict]:
    """The goals that were measured."""
    found = []
    measured = [line for line in lines if isinstance(line, Result)]
    if len(measured) == 2:
        own, other = measured
        times = own.events_per_s / other.events_per_s
        found.append(Verdict(f"more tasks a second than {other.system}", f"{times:.2f} x", times > 1))
    for line in figures:
        if line["measurement"] == "ai batches":
            found.append(Verdict("batches of 3 about 3 x", f"{line['times']:.2f} x", line["times"] >= GOAL_BATCHES))
        if line["measurement"] == "ai submits":
            what = "a submit with a key" if line["keyed"] else "a submit"
            goal = f"{what} answered at {line['rate_per_s']} a second, p99 under {GOAL_SUBMIT_P99_S * 1000:.0f} ms"
            p50, p99 = line["p50_s"] * 1000, line["p99_s"] * 1000
            found.append(Verdict(goal, f"p50 {p50:.1f}, p99 {p99:.1f} ms", line["p99_s"] < GOAL_SUBMIT_P99_S))
    return found


def _cells(line: Line) -> list[str]:
    if not isinstance(line, Result):
        return [line.system, line.job, "SKIPPED"]
    cpu_ms = line.cpu_s / line.events * 1000
    return [
        line.system,
        line.job,
        f"{line.events:,}",
        f"{line.events_per_s:,.0f}",
        f"{cpu_ms:.2f}",
        f"{line.rss_peak_bytes / 1e6:.0f}",
    ]
