"""What the demo found, as tables of 80 columns."""

from __future__ import annotations

from collections.abc import Sequence

from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from compose.demo.audio import AudioOutcome, Session
from compose.demo.traffic import Outcome

_MD5_CHARS = 8


def show_traffic(console: Console, outcome: Outcome) -> None:
    """The most requested paths, and counts."""
    truth = outcome.truth
    table = _table("top paths")
    table.add_column("path", max_width=40, overflow="fold")
    for name in ("requests", "errors", "MB", "p50 ms", "p95 ms", "p99 ms", "IPs"):
        table.add_column(name, justify="right", no_wrap=True)
    for top in outcome.top:
        quantiles = (top.p50_response_time_ms, top.p95_response_time_ms, top.p99_response_time_ms)
        times = ["" if value is None else f"{value:.1f}" for value in quantiles]
        table.add_row(
            top.path, f"{top.requests:,}", f"{top.errors:,}", f"{top.bytes / 1e6:,.1f}", *times, f"{top.unique_ips:,}"
        )
    console.print(table)
    facts = _table("what happened to traffic")
    facts.show_header = False
    facts.add_column()
    facts.add_column(justify="right")
    for name, value in (
        ("records confirmed by Kafka", f"{outcome.published:,}"),
        ("distinct events", f"{truth.events:,}"),
        ("duplicates among them", f"{truth.duplicates:,}"),
        ("malformed lines, not sent", f"{outcome.malformed_lines:,}"),
        ("lines older than the lateness, left out", f"{outcome.left_out:,}"),
        ("broken records, dead-lettered", f"{outcome.dead_letters:,}"),
        ("(hour, path) groups compared", f"{len(truth.groups):,}"),
        (
            "events/s from first record to all visible",
            f"{outcome.published / (outcome.replay_s + outcome.settled_s):,.0f}",
        ),
    ):
        facts.add_row(name, value)
    console.print(facts)


def show_audio(console: Console, outcome: AudioOutcome) -> None:
    """A line for each session; of the MD5 sums the first digits."""
    table = _table("audio")
    table.add_column("session", no_wrap=True)
    for name in ("seconds", "chunks"):
        table.add_column(name, justify="right", no_wrap=True)
    for name in ("MD5 in", "MD5 out"):
        table.add_column(name, no_wrap=True, min_width=_MD5_CHARS)
    table.add_column("gaps")
    table.add_column("segments", justify="right", no_wrap=True)
    for session in outcome.sessions:
        table.add_row(*_audio_row(session))
    console.print(table)


def _audio_row(session: Session) -> Sequence[str]:
    sent, found = session.sent, session.found
    md5 = sent.md5[:_MD5_CHARS]
    if found is None:
        return session.how, "?", f"{len(sent.chunks):,}", md5, "none", "?", "?"
    gaps = [str(first) if first == last else f"{first}-{last}" for first, last in found.manifest.gaps]
    seconds = f"{found.manifest.duration_ms / 1000:.1f}"
    out = found.md5[:_MD5_CHARS]
    return session.how, seconds, f"{len(sent.chunks):,}", md5, out, ", ".join(gaps) or "none", str(len(found.segments))


def _table(title: str) -> Table:
    return Table(title=title, title_justify="left", title_style="bold", box=SIMPLE, padding=(0, 1, 0, 0))
