"""`sluiceway dlq`: looks at dead letters, sends them back to where they came from, and removes them."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import sys
import time
from collections.abc import Callable, Coroutine
from typing import Annotated, Any, TypeVar

import typer
from aiokafka.errors import KafkaError, ProducerFenced
from confluent_kafka import KafkaException
from rich.box import SIMPLE
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TimeRemainingColumn
from rich.table import Table

from compose.dlq import Dlq, DlqError, Found, Plan, Wanted, parse_time, utc
from compose.logs import set_up_logs
from compose.settings import load
from compose.stream_processes import STREAMS
from sinks.errors import SinkRefused, SinkUnavailable
from topics.deadletters import Letter, LetterId, parse_id

FAILED = 1
#: What is shown of bytes that are long.
SHOWN_BYTES = 4_096
#: Of letters that cannot be replayed, so many are told.
SHOWN_LETTERS = 10
T = TypeVar("T")

dlq = typer.Typer(
    no_args_is_help=True, help="Dead letters: list and show them, replay them once their cause is gone, purge them."
)


def _stream(name: str) -> str:
    if name and name not in STREAMS:
        raise typer.BadParameter(f"no stream is called {name!r}; there are: {', '.join(STREAMS)}")
    return name


def _time(text: str) -> str:
    try:
        parse_time(text or "0s", 0)
    except ValueError:
        raise typer.BadParameter(f"{text!r} is neither so long ago (90m, 24h, 7d) nor a time in ISO 8601") from None
    return text


def _id(text: str) -> str:
    if text and parse_id(text) is None:
        raise typer.BadParameter(f"{text!r} is no dead letter's id: topic/partition/offset, as `dlq list` tells it")
    return text


Stream = Annotated[str, typer.Option(help="of this stream only", callback=_stream)]
Reason = Annotated[str, typer.Option(help="with this reason only")]
Producer = Annotated[str | None, typer.Option(help="of this producer only; '' for those without one")]
Since = Annotated[str, typer.Option(help="written since then: 90m, 24h, 7d ago, or a time in ISO 8601", callback=_time)]
AsJson = Annotated[bool, typer.Option("--json", help="as JSON, one object a line")]
Yes = Annotated[bool, typer.Option("--yes", help="do it; without it the command tells what it would do")]


@dlq.command("list")
def list_letters(
    stream: Stream = "",
    reason: Reason = "",
    producer: Producer = None,
    since: Since = "",
    limit: Annotated[int, typer.Option(help="how many letters to tell, the newest", min=0)] = 20,
    as_json: AsJson = False,
) -> None:
    """Count dead letters by reason and producer, and tell the newest."""
    wanted = _wanted(stream, reason, producer, since)
    found = _run(lambda work: work.look(wanted, limit))
    if as_json:
        for (of, why, who), count in found.counts.most_common():
            _print_json({"kind": "count", "stream": of, "reason": why, "producer": who, "letters": count})
        for letter in found.newest:
            _print_json({"kind": "letter", **_summary(letter, found)})
    else:
        _print_list(found)


@dlq.command("show")
def show(
    id: Annotated[str, typer.Argument(help="the letter's id: topic/partition/offset", callback=_id)],
    raw: Annotated[bool, typer.Option("--raw", help="the record's bytes, and nothing else")] = False,
    as_json: AsJson = False,
) -> None:
    """Show one dead letter: why, whose, from where, what became of it, its headers and its bytes."""
    known = _known(id)
    letter, value, found = _run(lambda work: _shown(work, known, raw))
    if raw:
        sys.stdout.buffer.write(value or b"")
        sys.stdout.buffer.flush()
    elif as_json:
        headers = [[name, None if v is None else v.decode("utf-8", "backslashreplace")] for name, v in letter.headers]
        _print_json({**_summary(letter, found), "headers": headers, "key": _text(letter.key), "value": _text(value)})
    else:
        _print_letter(letter, value, found)


@dlq.command("replay")
def replay(
    id: Annotated[str, typer.Argument(help="one letter's id; without it, all that fit the options", callback=_id)] = "",
    stream: Stream = "",
    reason: Reason = "",
    producer: Producer = None,
    since: Since = "",
    limit: Annotated[int | None, typer.Option(help="how many to replay, the oldest first", min=1)] = None,
    again: Annotated[bool, typer.Option("--again", help="also those that were replayed before")] = False,
    yes: Yes = False,
    as_json: AsJson = False,
) -> None:
    """Send dead letters back to their source topics as the records they were.

    A letter is replayed once unless --again is given. Exits 1 when one could not be sent.
    """
    only, wanted = _only(id, stream, reason, producer, since), _wanted(stream, reason, producer, since)
    plan = _run(lambda work: work.plan(wanted, limit, again, only))
    if not yes:
        _tell_plan(plan, as_json)
        raise typer.Exit(FAILED if only and plan.obstacles else 0)
    sent, refused = _run(lambda work: work.replay(plan, again))
    if as_json:
        _print_json({"replayed": sent, "replayed_before": len(plan.done), "refused": _by_id(refused | plan.obstacles)})
    else:
        console = _console()
        console.print(f"replayed {sent:,} dead {'letter' if sent == 1 else 'letters'}")
        _tell_left(console, plan, refused)
    raise typer.Exit(FAILED if refused or (only and plan.obstacles) else 0)


@dlq.command("purge")
def purge(
    id: Annotated[
        str, typer.Argument(help="the last letter to remove, with all before it in its partition", callback=_id)
    ] = "",
    older_than: Annotated[
        str, typer.Option(help="all written before then: 90m, 24h, 7d ago, or a time in ISO 8601", callback=_time)
    ] = "",
    stream: Stream = "",
    yes: Yes = False,
    as_json: AsJson = False,
) -> None:
    """Remove dead letters for good, from the beginning of their topics up to one of them, or all that are older."""
    if bool(id) == bool(older_than):
        raise typer.BadParameter("give the id of the last letter to remove, or --older-than")
    until, wanted = _only(id, stream, "", None, ""), _wanted(stream, "", None, older_than)
    ranges = _run(lambda work: work.purgeable(wanted, until))
    count = _run(lambda work: work.purge(ranges) if yes else work.count(ranges))
    places = {str(LetterId(tp.topic, tp.partition, end - 1)): end - start for tp, (start, end) in ranges.items()}
    if as_json:
        _print_json({"purged" if yes else "to_purge": count, "up_to": list(places)})
        return
    console = _console()
    console.print(f"{'purged' if yes else 'would purge'} {count:,} dead {'letter' if count == 1 else 'letters'}")
    for place in places:
        console.print(f"  up to {place}", markup=False)
    if not yes and count:
        console.print("nothing was removed; --yes does it")


def _run(work: Callable[[Dlq], Coroutine[Any, Any, T]]) -> T:
    settings = load()
    set_up_logs(dataclasses.replace(settings, log_level="error"))
    console = Console(stderr=True)
    columns = (BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    try:
        with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bars:
            bar = bars.add_task("", total=None)
            return asyncio.run(work(Dlq(settings, lambda done, total: bars.update(bar, completed=done, total=total))))
    except ProducerFenced:
        problem = (
            "another replay has begun meanwhile. What this one had sent is noted; the same command sends what is left"
        )
    except (KafkaError, KafkaException) as error:
        problem = f"Kafka at {settings.kafka_bootstrap} does not answer as it should: {error}"
    except (DlqError, SinkRefused, SinkUnavailable) as error:
        problem = str(error)
    print(f"sluiceway: {problem}", file=sys.stderr)
    raise typer.Exit(FAILED)


async def _shown(work: Dlq, id: LetterId, raw: bool) -> tuple[Letter, bytes | None, Found]:
    letter = await work.find(id)
    return letter, await work.value(letter), Found() if raw else await work.history(letter)


def _wanted(stream: str, reason: str, producer: str | None, since: str) -> Wanted:
    return Wanted(stream, reason, producer, parse_time(since, round(time.time() * 1000)) if since else None)


def _only(id: str, stream: str, reason: str, producer: str | None, since: str) -> LetterId | None:
    if id and (stream or reason or since or producer is not None):
        raise typer.BadParameter("one letter's id and options that choose letters do not go together")
    return _known(id) if id else None


def _known(text: str) -> LetterId:
    id = parse_id(text)
    assert id is not None
    if id.topic not in Wanted().topics:
        raise typer.BadParameter(f"{id.topic} is none of the dead-letter topics: {', '.join(Wanted().topics)}")
    return id


def _summary(letter: Letter, found: Found) -> dict[str, Any]:
    last = found.replays.of(letter)
    return {
        "id": str(letter.id),
        "stream": letter.stream,
        "written_ms": letter.written_ms,
        "reason": letter.reason,
        "error": letter.error,
        "producer": letter.producer,
        "source": str(LetterId(letter.source_topic, letter.source_partition, letter.source_offset)),
        "attempts": letter.attempts,
        "replay_of": letter.replay_of or None,
        "object": letter.object_key or None,
        "replayed_ms": last.replayed_ms if last else None,
        "replays": last.times if last else 0,
        "replayed_to": last.to if last else None,
        "state": found.state(letter),
    }


def _print_list(found: Found) -> None:
    console = _console()
    if not found.counts:
        console.print("no dead letters")
        return
    counts = Table(box=SIMPLE, padding=(0, 1, 0, 0))
    for name in ("stream", "reason", "producer"):
        counts.add_column(name, no_wrap=True)
    counts.add_column("letters", justify="right")
    for key, count in found.counts.most_common():
        counts.add_row(*(_cell(text) for text in key), f"{count:,}")
    console.print(counts)
    if not found.newest:
        return
    letters = Table(box=SIMPLE, padding=(0, 1, 0, 0))
    for name in ("written", "id", "reason", "producer"):
        letters.add_column(name, no_wrap=True)
    letters.add_column("attempts", justify="right")
    letters.add_column("state", no_wrap=True)
    for letter in found.newest:
        where = (utc(letter.written_ms), str(letter.id), _cell(letter.reason), _cell(letter.producer))
        letters.add_row(*where, str(letter.attempts), found.state(letter))
    # Ids are for copying: a table may be wider than the window.
    Console(highlight=False, markup=False, width=max(console.width, 160)).print(letters)


def _cell(text: str) -> str:
    return "".join(c if c.isprintable() else "?" for c in text)[:40] or "-"


def _print_letter(letter: Letter, value: bytes | None, found: Found) -> None:
    last = found.replays.of(letter)
    lines = {
        "id": str(letter.id),
        "written": f"{utc(letter.written_ms)} UTC",
        "reason": letter.reason,
        "error": letter.error,
        "producer": letter.producer or "-",
        "source": f"{letter.source_topic} partition {letter.source_partition} offset {letter.source_offset}",
        "attempts": str(letter.attempts) + (f", replayed from {letter.replay_of}" if letter.replay_of else ""),
        "state": found.state(letter),
        "replayed": f"{last.times} times, last to {last.to} at {utc(last.replayed_ms)} UTC" if last else "",
        "object": letter.object_key,
        "no replay": letter.no_record,
    }
    console = Console(highlight=False, markup=False, soft_wrap=True)
    for name, text in lines.items():
        if text:
            console.print(f"{name:<9} {text}")
    console.print(f"key       {_shown_bytes(letter.key)}")
    for name, header in letter.headers:
        console.print(f"header    {name}: {_shown_bytes(header)}")
    size = "no value" if value is None else f"{len(value):,} bytes"
    console.print(f"value     {size}{':' if value else ''}")
    if value:
        console.print(_shown_bytes(value))
        if len(value) > SHOWN_BYTES:
            console.print(f"... the first {SHOWN_BYTES:,} bytes; --raw writes them all")


def _shown_bytes(data: bytes | None) -> str:
    """Text as text, anything else in hex."""
    if data is None:
        return "-"
    cut = data[:SHOWN_BYTES]
    text = cut.decode("utf-8", "ignore" if len(data) > SHOWN_BYTES else "replace")
    if "\ufffd" not in text and all(c.isprintable() or c in "\n\t" for c in text):
        return text
    rows = [cut[at : at + 32].hex(" ", 4) for at in range(0, len(cut), 32)]
    return "\n".join(rows)


def _text(data: bytes | None) -> dict[str, str] | None:
    """Bytes in JSON: as text where they are UTF-8, in hex otherwise."""
    if data is None:
        return None
    try:
        return {"text": data.decode()}
    except UnicodeDecodeError:
        return {"hex": data.hex()}


def _tell_plan(plan: Plan, as_json: bool) -> None:
    if as_json:
        for id in plan.take:
            _print_json({"id": str(id), "would": "replay"})
        for id in plan.done:
            _print_json({"id": str(id), "would": "leave", "why": "replayed before"})
        for id, why in plan.obstacles.items():
            _print_json({"id": str(id), "would": "leave", "why": why})
        return
    console = _console()
    count = len(plan.take)
    console.print(f"would replay {count:,} dead {'letter' if count == 1 else 'letters'}")
    _tell_left(console, plan, {})
    if count:
        console.print("nothing was sent; --yes does it")


def _tell_left(console: Console, plan: Plan, refused: dict[LetterId, str]) -> None:
    if plan.done:
        console.print(f"{len(plan.done):,} replayed before, left out; --again takes them too")
    left = {**plan.obstacles, **refused}
    if left:
        console.print(f"{len(left):,} cannot be replayed:")
    for id, why in list(left.items())[:SHOWN_LETTERS]:
        console.print(f"  {id}: {why}", markup=False, soft_wrap=True)
    if len(left) > SHOWN_LETTERS:
        console.print(f"  and {len(left) - SHOWN_LETTERS:,} more; --json tells them all")


def _by_id(reasons: dict[LetterId, str]) -> dict[str, str]:
    return {str(id): why for id, why in reasons.items()}


def _print_json(found: dict[str, Any]) -> None:
    print(json.dumps(found))


def _console() -> Console:
    return Console(highlight=False)
