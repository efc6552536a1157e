"""`sluiceway validate`: a producer's traffic events checked by the code that a worker uses."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import msgspec
import typer
from rich.console import Console

from topics.traffic import Malformed, decode

INVALID = 1
UNREADABLE = 2
SHOWN = 50
HINT = (
    "Key each record by its event_id and set the murmur2 partitioner (Java's default; librdkafka: "
    "partitioner=murmur2_random). Other keys are sent on to their partition, at the cost of a second hop."
)


@dataclass(frozen=True)
class Fault:
    """One event that a worker would send to the dead-letter topic: its line (or element) from 1, and why."""

    line: int
    reason: str
    error: str


@dataclass
class Verdict:
    """Counts over a file, and its first faults. `repeated_ids` are valid events that a worker would drop as duplicates."""

    events: int = 0
    valid: int = 0
    invalid: int = 0
    repeated_ids: int = 0
    reasons: dict[str, int] = field(default_factory=dict)
    faults: list[Fault] = field(default_factory=list)


def validate(
    file: Annotated[str, typer.Argument(help="events as NDJSON or a JSON array; - is standard input")],
    as_json: Annotated[bool, typer.Option("--json", help="the verdict as one JSON object")] = False,
) -> None:
    """Check traffic events before they are sent. Exits 1 when any is invalid, 2 when the file cannot be read."""
    try:
        content = sys.stdin.buffer.read() if file == "-" else Path(file).read_bytes()
    except OSError as error:
        print(f"sluiceway: cannot read {file}: {error.strerror or error}", file=sys.stderr)
        raise typer.Exit(UNREADABLE) from None
    verdict = judge(events_of(content))
    if as_json:
        print(json.dumps({"file": file, **dataclasses.asdict(verdict)}))
    else:
        _print(file, verdict)
    raise typer.Exit(INVALID if verdict.invalid or not verdict.events else 0)


def events_of(content: bytes) -> Iterator[tuple[int, Any]]:
    """Each event's JSON text with its line number, or with its position from 1 where the content is one array."""
    whole = {b"[": list[msgspec.Raw], b"{": msgspec.Raw}.get(content.lstrip()[:1])
    with suppress(msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        if whole is not None:
            events = msgspec.json.decode(content, type=whole)
            yield from enumerate(events if isinstance(events, list) else [events], 1)
            return
    # Not one document: each line is judged for itself, and says what is wrong with it.
    for number, line in enumerate(content.split(b"\n"), 1):
        if line and not line.isspace():
            yield number, line


def judge(events: Iterable[tuple[int, Any]]) -> Verdict:
    """Decode every event as a worker does."""
    verdict = Verdict()
    reasons: Counter[str] = Counter()
    ids: set[str] = set()
    for number, text in events:
        verdict.events += 1
        event = decode(bytes(text))
        if isinstance(event, Malformed):
            reasons[event.reason] += 1
            if len(verdict.faults) < SHOWN:
                verdict.faults.append(Fault(number, event.reason, event.error))
            continue
        verdict.valid += 1
        verdict.repeated_ids += event.event_id in ids
        ids.add(event.event_id)
    verdict.invalid = verdict.events - verdict.valid
    verdict.reasons = dict(reasons)
    return verdict


def _print(file: str, verdict: Verdict) -> None:
    console = Console(highlight=False)
    for fault in verdict.faults:
        console.print(f"{file}:{fault.line}: {fault.reason}: {fault.error}", markup=False, soft_wrap=True)
    if verdict.invalid > len(verdict.faults):
        console.print(f"... and {verdict.invalid - len(verdict.faults):,} more")
    console.print(f"{verdict.events:,} events: {verdict.valid:,} valid, {verdict.invalid:,} invalid")
    if not verdict.events:
        console.print("There is no event in it.")
    if verdict.repeated_ids:
        console.print(f"{verdict.repeated_ids:,} repeat an event_id: they count once.")
    console.print(HINT)
