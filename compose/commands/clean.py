"""`sluiceway clean`: removes what audio sessions, conversions and uploads have left in the bucket and nobody needs."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import re
import sys
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn

from compose.cleaning import Cleaner, Swept
from compose.cleaning_files import FilesCleaner
from compose.clients import bucket, clickhouse
from compose.logs import set_up_logs
from compose.settings import Settings, load
from sinks.errors import SinkRefused, SinkUnavailable
from topics.audio_events import AUDIO_PREFIX

FAILED = 1
WRONG = 2
_ANSWER_S = 15.0
_SHOWN = 50
_UNITS_S = {"s": 1, "m": 60, "h": 3_600, "d": 86_400}


def clean(
    older_than: Annotated[str, typer.Option(help="leave alone what is younger, as in 90m, 24h or 7d")] = "24h",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="only say what would be removed")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="as one JSON object")] = False,
) -> None:
    """Remove audio segments that their recordings have made needless, results of conversions that did not win, and uploads
    that were given up.

    Exits 1 when the bucket or ClickHouse does not answer: what is needed is then not known, and nothing goes.
    """
    settings = load()
    set_up_logs(dataclasses.replace(settings, log_level="error"))
    age_s = duration_s(older_than)
    if age_s is None:
        print(f"sluiceway: --older-than {older_than!r} is no duration: a number and s, m, h or d", file=sys.stderr)
        raise typer.Exit(WRONG)
    console = Console(stderr=True)
    columns = (SpinnerColumn(), TextColumn("{task.description}"))
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("looking at the bucket")
        try:
            swept = asyncio.run(sweep(settings, age_s, dry_run, lambda s: bar.update(task, description=_said(s))))
        except (SinkUnavailable, SinkRefused, TimeoutError) as error:
            why = str(error) or f"the bucket at {settings.s3_endpoint} does not answer"
            print(f"sluiceway: {why}", file=sys.stderr)
            raise typer.Exit(FAILED) from None
    if as_json:
        print(json.dumps(document(swept, dry_run)))
    else:
        _print(swept, dry_run)


def duration_s(text: str) -> float | None:
    """Seconds of a duration such as `24h`; None if it is none."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([smhd])", text.strip())
    return float(found[1]) * _UNITS_S[found[2]] if found else None


async def sweep(settings: Settings, older_than_s: float, dry_run: bool, progress: Any) -> Swept:
    objects, sink = bucket(settings), clickhouse(settings)
    try:
        async with asyncio.timeout(_ANSWER_S):
            await objects.head(AUDIO_PREFIX)
        how: dict[str, Any] = {"older_than_s": older_than_s, "dry_run": dry_run, "progress": progress}
        swept = await Cleaner(objects, sink, **how).run()
        return await FilesCleaner(objects, sink, swept, url_s=settings.upload_url_s, **how).run()
    finally:
        await sink.close()
        await objects.close()


def document(swept: Swept, dry_run: bool) -> dict[str, Any]:
    """What a sweep has come to, as JSON values."""
    return {
        "dry_run": dry_run,
        "looked_at": swept.looked_at,
        "removed": [dataclasses.asdict(leftover) for leftover in swept.leftovers],
        "removed_bytes": sum(leftover.size_bytes for leftover in swept.leftovers),
        "kept": swept.kept,
    }


def _said(swept: Swept) -> str:
    return f"{swept.looked_at:,} objects looked at, {len(swept.leftovers):,} needless"


def _print(swept: Swept, dry_run: bool) -> None:
    console = Console(highlight=False)
    verb = "would be removed" if dry_run else "removed"
    for leftover in swept.leftovers[:_SHOWN]:
        name = leftover.key if leftover.kind == "object" else f"upload of {leftover.key}"
        console.print(f"{verb}: {name}: {leftover.verdict}", markup=False, soft_wrap=True)
    if len(swept.leftovers) > _SHOWN:
        console.print(f"... and {len(swept.leftovers) - _SHOWN:,} more")
    size = sum(leftover.size_bytes for leftover in swept.leftovers)
    console.print(f"{swept.looked_at:,} objects looked at, {len(swept.leftovers):,} {verb} ({size:,} bytes)")
    for reason, count in sorted(swept.kept.items()):
        console.print(f"{count:,} kept: {reason}", markup=False, soft_wrap=True)
