"""What a run of `sluiceway bench files` found, as a line of JSON and as a table of claims met and missed."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from rich.console import Console
from rich.table import Table

from compose.bench.report import Verdict

WAYS = ("direct", "relay")
#: What a direct upload is to save of a relay's, at least.
GOAL_CPU, GOAL_MEMORY, GOAL_SECONDS = 0.70, 0.80, 0.50


@dataclass(frozen=True)
class Found:
    """One case. `ways` by name: seconds (median), the gateway's CPU seconds (mean), its memory at most above its rest
    before the first upload, and the bytes of requests through it (mean)."""

    case: str
    size_bytes: int
    users: int
    rounds: int
    gateway_idle_cores: float
    ways: dict[str, dict[str, Any]]

    def transfers(self, way: str) -> float:
        """How often a byte of a file is sent: to the gateway, and to the store."""
        return 1 + float(self.ways[way]["through_gateway_bytes"]) / (self.size_bytes * self.users)

    def saved(self, figure: str) -> float:
        """The share of the relay's figure that a direct upload does without; negative if it takes more."""
        direct, relay = (float(self.ways[way][figure]) for way in WAYS)
        return 1 - direct / relay if relay > 0 else 0.0

    def verdicts(self) -> Sequence[Verdict]:
        """The claims, and whether they hold."""
        found = [
            self._saves("CPU", "gateway_cpu_s", GOAL_CPU, 1e3, "ms"),
            self._saves("memory", "gateway_memory_bytes", GOAL_MEMORY, 1e-6, "MB"),
            self._saves("time", "seconds", GOAL_SECONDS, 1, "s"),
        ]
        direct, relay = (self.transfers(way) for way in WAYS)
        found.append(
            Verdict(f"{self.case}: transfers 2 -> 1", f"{relay:.2f} -> {direct:.2f}", direct < 1.01 and relay > 1.99)
        )
        if self.users > 1:
            rates = [self.users / float(self.ways[way]["seconds"]) for way in WAYS]
            measured = f"{rates[0]:.1f} against {rates[1]:.1f} files a second"
            found.append(Verdict(f"{self.case}: more served at once", measured, rates[0] > rates[1]))
        return found

    def _saves(self, what: str, figure: str, goal: float, times: float, unit: str) -> Verdict:
        direct, relay = (float(self.ways[way][figure]) * times for way in WAYS)
        saved = self.saved(figure)
        measured = f"{-saved:+.0%} ({relay:.3g} -> {direct:.3g} {unit})"
        return Verdict(f"{self.case}: {what} -{goal:.0%} or more", measured, saved >= goal)


def files_line(found: Sequence[Found]) -> str:
    """The whole run as one line of JSON."""
    verdicts = [asdict(verdict) for case in found for verdict in case.verdicts()]
    return json.dumps({"measurement": "files", "cases": [asdict(case) for case in found], "claims": verdicts})


def show_files(console: Console, found: Sequence[Found]) -> None:
    """The figures, and each claim met or missed."""
    title = "straight to the store or through the gateway, and what the gateway used"
    table = Table(title=title)
    for name in ("case", "way"):
        table.add_column(name, no_wrap=True)
    for name in ("rounds", "seconds", "CPU s", "memory MB", "bytes through"):
        table.add_column(name, justify="right", no_wrap=True)
    for case in found:
        for way, took in case.ways.items():
            table.add_row(
                case.case,
                way,
                str(case.rounds),
                f"{took['seconds']:.2f}",
                f"{took['gateway_cpu_s']:.3f}",
                f"{took['gateway_memory_bytes'] / 1e6:.1f}",
                f"{took['through_gateway_bytes']:,}",
            )
    console.print(table)
    for case in found:
        for verdict in case.verdicts():
            console.print(f"{'met ' if verdict.met else 'MISSED'}  {verdict.goal}: {verdict.measured}")
    console.print(
        "client, gateway and store share two cores, and no network is between them: a slow link is not measured"
    )
    idle = max(case.gateway_idle_cores for case in found)
    console.print(f"a gateway at rest uses up to {idle:.1%} of a core, which is counted with either way")
