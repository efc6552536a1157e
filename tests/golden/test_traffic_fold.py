"""A recorded partition and everything that its fold makes of it, as text: change a rule, and the difference explains it.

`input.txt` is the log. `plain.txt`, `templates.txt` and `capped.txt` are what the fold writes under three settings; after
a change that is meant, `python -m tests.golden.test_traffic_fold` writes them anew.
"""

from __future__ import annotations

import difflib
import re
import struct
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from streams.traffic.core import IDS, TrafficRules
from streams.traffic.delta import decode_delta
from streams.traffic.rollup import DELTA, SNAPSHOT
from tests.traffic import DAY_MS, HOUR_MS, ChangelogRecord, Process, Record, World
from topics.headers import Headers
from topics.records import DeadLetter, Emit, Flush

FOLDER = Path(__file__).parent / "traffic"
_BASE: dict[str, Any] = {"partition": 0, "partitions": 2, "dimensions": ("zone",)}
SETTINGS = {
    "plain": TrafficRules(**_BASE),
    "templates": TrafficRules(**_BASE, templates=True),
    "capped": TrafficRules(**_BASE, paths_max=4),
}


@pytest.mark.parametrize("name", SETTINGS)
def test_the_fold_makes_of_the_log_what_was_recorded(name: str) -> None:
    recorded, now = (FOLDER / f"{name}.txt").read_text(), _folded(SETTINGS[name])
    difference = difflib.unified_diff(recorded.splitlines(), now.splitlines(), "recorded", "now", lineterm="", n=2)
    if recorded != now:
        pytest.fail("\n".join(difference), pytrace=False)


# -- the log -----------------------------------------------------------------------------------------------------


def _flushes() -> Iterator[list[Record]]:
    """The records up to each flush."""
    records: list[Record] = []
    for line in (FOLDER / "input.txt").read_text().splitlines():
        if line.startswith("---"):
            yield records
        elif line and not line.startswith("#"):
            records.append(_record(line))


def _record(line: str) -> Record:
    offset, append, headers, value = line.split(maxsplit=3)
    values = {"(tombstone)": None, "(empty)": b""}
    stamped = re.sub(r"@([-+:.\dd]+)", lambda match: str(_ms(match[1])), value)
    return Record(int(offset), _ms(append), values.get(value, stamped.encode()), b"key", _headers(headers))


def _ms(text: str) -> int:
    """Milliseconds of a time of the log's day, or so many days off."""
    days, _, clock = text.rpartition("d")
    hours, minutes, seconds = clock.split(":")
    at_ms = (int(hours) * 60 + int(minutes)) * 60_000 + round(float(seconds) * 1000)
    return DAY_MS + int(days or 0) * 24 * HOUR_MS + at_ms


def _headers(text: str) -> Headers:
    return [] if text == "-" else [(name, value.encode()) for name, _, value in [text.partition("=")]]


# -- what becomes of it ------------------------------------------------------------------------------------------


def _folded(rules: TrafficRules) -> str:
    world = World()
    process = Process(rules, world)
    lines: list[str] = []
    for number, records in enumerate(_flushes(), 1):
        process.read(records, records[-1].offset + 1)
        flush = process.seal()
        lines += ["", f"# Flush {number}, up to offset {flush.next_offset}", *_flush_lines(flush)]
        process.commit(flush)
        process.materialise()
    totals = " ".join(f"{name}={count}" for name, count in sorted(process.fold.state.totals.items()))
    lines += [
        "",
        "# Totals",
        totals,
        "",
        "# In ClickHouse at the end",
        *sorted(map(_rollup_line, world.rollups.values())),
    ]
    return "\n".join(lines[1:]) + "\n"


def _flush_lines(flush: Flush) -> Iterator[str]:
    for table in flush.rows.get("traffic_events_rows", []):
        yield from _event_lines(table.to_pylist())
    yield from map(_dead_line, flush.dead)
    yield from map(_emit_line, flush.emits)
    yield from map(_changelog_line, flush.changelog)


def _event_lines(rows: Iterable[dict[str, Any]]) -> Iterator[str]:
    for row in rows:
        fields = [row["method"], _text(row["path"]), row["status"], row["client_ip"]]
        optional = {name: row[name] for name in ("response_time_ms", "bytes", "user_agent", "dimensions", "producer")}
        told = [f"{name}={value}" for name, value in optional.items() if value not in (None, "", [])]
        where = f"{row['source_partition']}/{row['source_offset']}"
        yield " ".join(map(str, ["row", where, row["event_id"], _time(row["timestamp_ms"]), *fields, *told]))


def _dead_line(letter: DeadLetter) -> str:
    value = "none" if letter.value is None else f"{len(letter.value)} bytes"
    return f"dead {letter.partition}/{letter.offset} {letter.reason}: {letter.error} (value {value})"


def _emit_line(emit: Emit) -> str:
    headers = " ".join(f"{name}={(value or b'').decode()}" for name, value in emit.headers)
    return f"send to {emit.topic}[{emit.partition}] key {(emit.key or b'').decode()} headers {headers}"


def _changelog_line(record: ChangelogRecord) -> str:
    key, value = record
    kind = key[:1]
    if kind not in (IDS, DELTA, SNAPSHOT):
        return "changelog the fold's own record"
    hour, number = struct.unpack(">iQ" if kind == DELTA else ">iI", key[1:])
    name = {IDS: "ids", DELTA: "delta", SNAPSHOT: "snapshot"}[kind]
    what = "removed" if value is None else _content(kind, hour, value)
    return f"changelog {name} {_time(hour * HOUR_MS)} #{number}: {what}"


def _content(kind: bytes, hour: int, value: bytes) -> str:
    if kind == IDS:
        return f"{len(value) // 16} ids that expire after this hour"
    assert kind == DELTA, "the log is too short for a snapshot"
    delta = decode_delta(hour, value)
    return f"{len(delta.keys)} keys, {len(delta.hashes)} addresses, {len(delta.values)} response times"


def _rollup_line(row: dict[str, Any]) -> str:
    key = f"{_time(row['hour'] * 1000)} {_text(row['path'])} {row['method']} {row['status_class']}"
    zone = dict(row["dimensions"])["zone"]
    names = ("requests", "errors", "bytes", "response_time_us", "timed", "max_response_time_us")
    sums = " ".join(f"{name}={row[name]}" for name in names)
    # Both states are small here: a count of one byte stands before their content.
    times = struct.iter_unpack("<ff", row["response_time"][1:])
    digest = ",".join(f"{mean:g}x{weight:g}" for mean, weight in times)
    return f"{key}{zone and f' zone={zone}'}: {sums} addresses={row['visitors'][1]} times={digest or '-'}"


def _time(ms: int) -> str:
    at = datetime.fromtimestamp(ms / 1000, UTC)
    return at.strftime("%dT%H:%M") if ms % 60_000 == 0 else at.strftime("%dT%H:%M:%S.") + f"{ms % 1000:03d}"


def _text(path: str) -> str:
    return path if path.isprintable() else repr(path)


if __name__ == "__main__":
    for name, rules in SETTINGS.items():
        (FOLDER / f"{name}.txt").write_text(_folded(rules))
