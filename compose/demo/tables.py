"""What the demo found, as tables of 80 columns."""

from __future__ import annotations

from collections.abc import Sequence

from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from compose.demo.ai import AiOutcome
from compose.demo.audio import AudioOutcome, Session
from compose.demo.clip import Media
from compose.demo.files import FilesOutcome
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
    _show_facts(
        console,
        "what happened to traffic",
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
    )


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


def show_ai(console: Console, outcome: AiOutcome) -> None:
    """Tasks and calls, counted."""
    found = outcome.found
    _show_facts(
        console,
        "what happened to AI tasks",
        ("submissions that the gateway took", f"{outcome.submissions:,}"),
        ("distinct tasks", f"{len(outcome.questions):,}"),
        ("rows in ClickHouse", f"{len(found.rows):,}"),
        ("completed among them", f"{sum(row['status'] == 'completed' for row in found.rows):,}"),
        ("calls of the model", f"{found.total('calls'):,}"),
        ("calls lost with the worker, made again", f"{found.total('lost_calls'):,}"),
    )


def show_files(console: Console, outcome: FilesOutcome) -> None:
    """A line for the clip, and one for each conversion."""
    table = _table("files")
    table.add_column("file", no_wrap=True)
    for name in ("seconds", "MB"):
        table.add_column(name, justify="right", no_wrap=True)
    for name in ("sound", "picture", "status"):
        table.add_column(name, no_wrap=True)
    for name in ("attempts", "lost"):
        table.add_column(name, justify="right", no_wrap=True)
    if outcome.source is not None:
        table.add_row("clip", *_media(outcome.source, outcome.source_bytes), "uploaded", "", "")
    for job_id, format in outcome.jobs.items():
        row, result = outcome.found.row(job_id), outcome.found.results.get(job_id)
        media = _media(result.media, result.size_bytes) if result else ("?",) * 4
        told = (str(row.get(name, "?")) for name in ("status", "attempts", "lost_attempts"))
        table.add_row(format, *media, *told)
    console.print(table)


def _media(media: Media, size_bytes: int) -> Sequence[str]:
    return f"{media.seconds:.1f}", f"{size_bytes / 1e6:.1f}", media.audio or "none", media.video or "none"


def _audio_row(session: Session) -> Sequence[str]:
    sent, found = session.sent, session.found
    md5 = sent.md5[:_MD5_CHARS]
    if found is None:
        return session.how, "?", f"{len(sent.chunks):,}", md5, "none", "?", "?"
    gaps = [str(first) if first == last else f"{first}-{last}" for first, last in found.manifest.gaps]
    seconds = f"{found.manifest.duration_ms / 1000:.1f}"
    out = found.md5[:_MD5_CHARS]
    return session.how, seconds, f"{len(sent.chunks):,}", md5, out, ", ".join(gaps) or "none", str(len(found.segments))


def _show_facts(console: Console, title: str, *facts: tuple[str, str]) -> None:
    table = _table(title)
    table.show_header = False
    table.add_column()
    table.add_column(justify="right")
    for name, value in facts:
        table.add_row(name, value)
    console.print(table)


def _table(title: str) -> Table:
    return Table(title=title, title_justify="left", title_style="bold", box=SIMPLE, padding=(0, 1, 0, 0))
