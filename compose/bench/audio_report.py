"""What a run of `sluiceway bench audio` found, as a line of JSON and as a table of limits met and missed."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field

from rich.console import Console
from rich.table import Table

from compose.bench.report import QUIET_SHARE, Verdict
from streams.audio.figures import HANDLING_LIMIT_S
from streams.web.metrics import DURABLE_LIMIT_S

OVERHEAD_BYTES = 200_000_000


@dataclass(frozen=True, kw_only=True)
class Found:
    """One run. `cores` are the shares of a core that each process used; `worker_overhead_bytes` is the most that the
    worker's resident memory was above 1.3 times the audio it held."""

    sessions: int
    seconds: float
    frames_per_s: float
    bytes_per_s: float
    frames: int
    frames_lost: int
    durable_p50_s: float | None
    durable_p99_s: float | None
    durable_max_s: float | None
    handling_p50_s: float | None
    handling_p99_s: float | None
    segments_stored: int
    segments_failed: int
    worker_rss_peak_bytes: int
    worker_held_peak_bytes: int
    worker_overhead_bytes: int
    gateway_us_per_frame: float
    worker_us_per_frame: float
    cores: dict[str, float]
    close_s: float
    unclosed: int
    recordings_wrong: list[str]
    sent_late_p99_s: float | None
    troubles: list[str] = field(default_factory=list)

    def line(self) -> str:
        """One line of JSON."""
        found = {name: round(value, 4) if isinstance(value, float) else value for name, value in asdict(self).items()}
        return json.dumps({"measurement": "audio", **found, "met": self.met})

    @property
    def met(self) -> bool:
        """Whether every limit is."""
        return all(verdict.met for verdict in self.verdicts())

    def verdicts(self) -> Sequence[Verdict]:
        """Each limit, and whether it is met."""
        attempted = self.segments_stored + self.segments_failed
        return [
            Verdict("no frame lost", f"{self.frames_lost:,} of {self.frames:,}", self.frames_lost == 0),
            Verdict(
                "every recording bit for bit as sent",
                f"{len(self.recordings_wrong)} are not, {self.unclosed} were not closed",
                not self.recordings_wrong and not self.unclosed,
            ),
            Verdict(
                "all uploads succeed",
                f"{self.segments_stored:,} of {attempted:,} segments",
                attempted > 0 and not self.segments_failed,
            ),
            _within("frame to durable, p99", self.durable_p99_s, DURABLE_LIMIT_S),
            _within("fetched to folded, p99", self.handling_p99_s, HANDLING_LIMIT_S),
            Verdict(
                f"worker under 1.3 x the audio held + {OVERHEAD_BYTES / 1e6:.0f} MB",
                f"1.3 x + {self.worker_overhead_bytes / 1e6:.0f} MB",
                self.worker_overhead_bytes < OVERHEAD_BYTES,
            ),
        ]


def _within(what: str, seconds: float | None, limit_s: float) -> Verdict:
    measured = "not measured" if seconds is None else f"{seconds * 1000:.1f} ms"
    return Verdict(f"{what} under {limit_s * 1000:.0f} ms", measured, seconds is not None and seconds < limit_s)


def show_audio(console: Console, found: Found) -> None:
    """The figures, and each limit met or missed."""
    table = Table("figure", title=f"{found.sessions} live sessions for {found.seconds:g} s", show_header=False)
    table.add_column(justify="right")
    rows = {
        "chunks a second": f"{found.frames_per_s:,.0f} ({found.bytes_per_s / 1e6:.1f} MB/s)",
        "frame to durable, p50 / p99 / most": _ms(found.durable_p50_s, found.durable_p99_s, found.durable_max_s),
        "fetched to folded, p50 / p99": _ms(found.handling_p50_s, found.handling_p99_s),
        "gateway, CPU a frame": f"{found.gateway_us_per_frame:.0f} us",
        "worker, CPU a frame": f"{found.worker_us_per_frame:.0f} us",
        "worker, most memory (audio held)": f"{found.worker_rss_peak_bytes / 1e6:,.0f} MB "
        f"({found.worker_held_peak_bytes / 1e6:,.0f} MB)",
        "shares of a core": ", ".join(f"{name} {share:.2f}" for name, share in found.cores.items()),
        "last close to all closed": f"{found.close_s:.1f} s",
    }
    for name, value in rows.items():
        table.add_row(name, value)
    console.print(table)
    for verdict in found.verdicts():
        console.print(f"{'met ' if verdict.met else 'MISSED'}  {verdict.goal}: {verdict.measured}")
    for trouble in found.troubles:
        console.print(f"trouble: {trouble}", markup=False)
    others = found.cores["others"]
    if others > 2 * QUIET_SHARE:
        console.print(f"[bold]others used {others:.2f} of the two cores: run it again on a quiet machine[/bold]")


def _ms(*seconds: float | None) -> str:
    return " / ".join("-" if value is None else f"{value * 1000:.1f}" for value in seconds) + " ms"
