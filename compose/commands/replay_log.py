"""`sluiceway replay-log`: an access log into Kafka, the same file any number of times without counting twice."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import sys
import time
from datetime import UTC, datetime
from enum import StrEnum
from itertools import islice
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from compose.kafka import traffic_publisher
from compose.logfile import LogFile, Occurrences, Survey, survey
from compose.logs import set_up_logs
from compose.replay import Replay, Report, Window, window
from compose.settings import Settings, load
from streams.traffic.accessjson import parse_json
from streams.traffic.accesslog import parse_combined, parse_line
from streams.web.publisher import PublishLimits, PublishUnavailable

NOTHING_SENT = 1
UNREADABLE = 2
KAFKA_FAILED = 3
_CONNECT_S = 15.0


class LogFormat(StrEnum):
    """How lines are read; `auto` takes a line that begins with a brace as JSON."""

    AUTO = "auto"
    COMBINED = "combined"
    JSON = "json"


_PARSERS = {LogFormat.AUTO: parse_line, LogFormat.COMBINED: parse_combined, LogFormat.JSON: parse_json}


def replay_log(
    file: Annotated[str, typer.Argument(help="access log, plain or gzip; - is standard input")],
    format: Annotated[LogFormat, typer.Option(help="how lines are read")] = LogFormat.AUTO,
    rebase: Annotated[bool, typer.Option("--rebase", help="move all times so that the newest line ends now")] = False,
    rate: Annotated[float | None, typer.Option(min=0.1, help="at most this many lines per second")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="the summary as one JSON object")] = False,
) -> None:
    """Replay an nginx or Apache access log (combined, common or JSON lines) as traffic events.

    Exits 1 when no line could be sent or the file is damaged, 2 when it cannot be read, 3 when Kafka failed.
    """
    settings = load()
    set_up_logs(dataclasses.replace(settings, log_level="warning"))  # the bar and the summary say the rest
    try:
        log = LogFile(file)
    except OSError as error:
        print(f"sluiceway: cannot read {file}: {error.strerror or error}", file=sys.stderr)
        raise typer.Exit(UNREADABLE) from None
    with Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        transient=True,
        disable=not sys.stderr.isatty(),
    ) as bars:
        found, taken, report = asyncio.run(replay_file(settings, log, format, rebase, rate, bars))
    summary = summary_of(log, found, taken, report)
    if as_json:
        print(json.dumps(summary))
    else:
        _print(summary, settings, rebase)
    raise typer.Exit(exit_code(log, report))


async def replay_file(
    settings: Settings, log: LogFile, format: LogFormat, rebase: bool, rate: float | None, bars: Progress
) -> tuple[Survey, Window, Report]:
    """Survey the log, then send it; the log is closed. What went wrong is in the report."""
    parse = _PARSERS[format]
    reading = bars.add_task("reading, bytes", total=log.size_bytes)
    found = survey(log.lines(lambda done: bars.update(reading, completed=done)), parse)
    taken = window(
        found,
        now_ms=time.time_ns() // 1_000_000,
        rebase=rebase,
        lateness_h=settings.traffic_lateness_h,
        early_h=settings.traffic_early_h,
        rate=rate,
    )
    publisher = traffic_publisher(settings, "replay-log", PublishLimits(delivery_timeout_s=60.0))
    replay = Replay(publisher, parse, taken, Occurrences(found.repeated))
    sending = bars.add_task("sending, lines", total=found.lines)
    await publisher.start()
    try:
        await publisher.wait_connected(_CONNECT_S)
        # No more lines than were surveyed: a server may still be writing the file.
        await replay.run(
            islice(log.lines(lambda _: None), found.lines),
            rate=rate,
            progress=lambda done: bars.update(sending, completed=done),
        )
    except PublishUnavailable as error:
        replay.report.error = str(error)
    finally:
        await publisher.close()
        log.close()
    return found, taken, replay.report


def exit_code(log: LogFile, report: Report) -> int:
    """0 when every line that can be sent is in Kafka."""
    if report.error is not None:
        return KAFKA_FAILED
    return NOTHING_SENT if not report.sent or log.damage else 0


def summary_of(log: LogFile, found: Survey, taken: Window, report: Report) -> dict[str, Any]:
    """The summary as JSON values; times are the file's own, in Unix milliseconds."""
    return {
        "file": log.name,
        **dataclasses.asdict(report),
        "shift_ms": taken.shift_ms,
        "oldest_taken_ms": taken.oldest_ms,
        "newest_ms": found.newest_ms,
        "damage": log.damage,
    }


def _print(summary: dict[str, Any], settings: Settings, rebase: bool) -> None:
    console = Console(highlight=False)
    hours = settings.traffic_lateness_h
    newest = f"newest, {_utc(summary['newest_ms'])}" if summary["newest_ms"] is not None else "newest"
    table = Table("lines", "what became of them", title="replay", title_justify="left")
    table.add_row(f"{summary['sent']:,}", "sent and confirmed by Kafka")
    for count, meaning in (
        (
            summary["too_old"],
            f"more than {hours} h older than " + (f"the {newest}" if rebase else "now") + ", left out",
        ),
        (summary["too_new"], f"more than {settings.traffic_early_h} h ahead of now, left out"),
        (summary["malformed"], "malformed"),
    ):
        if count:
            table.add_row(f"{count:,}", meaning)
    console.print(table)
    for example in summary["examples"]:
        console.print(
            f"  line {example['line']}: {example['reason']}: {example['error']}", markup=False, soft_wrap=True
        )
    if summary["seconds"]:
        console.print(f"{summary['sent']:,} events in {summary['seconds']:.1f} s, {_rate(summary):,.0f} lines/s")
    for note in _notes(summary, rebase):
        console.print(note, markup=False, soft_wrap=True)


def _notes(summary: dict[str, Any], rebase: bool) -> list[str]:
    notes = []
    if summary["too_old"]:
        other = "" if rebase else "--rebase moves a log to end now; "
        notes.append(f"Older lines: {other}--historical, to load them with their own times, is not available yet.")
    if summary["damage"]:
        notes.append(f"{summary['file']}: {summary['damage']}")
    if summary["error"]:
        notes.append(
            f"{summary['error']}. Run the same command again when Kafka is back: ids are those of the lines, so nothing "
            "counts twice."
        )
    return notes


def _rate(summary: dict[str, Any]) -> float:
    return float(summary["lines"] / summary["seconds"])


def _utc(time_ms: int) -> str:
    return datetime.fromtimestamp(time_ms / 1000, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
