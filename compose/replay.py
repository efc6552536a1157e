"""Replays an access log into `traffic.events.v1`: which lines, with which times, and what became of each."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import islice

from compose.logfile import Occurrences, Parse, Survey
from streams.traffic.accesslog import event_id, event_json
from streams.web.publisher import EventPublisher, PublishUnavailable, Record
from topics.traffic import Malformed

HOUR_MS = 3_600_000
#: Lines this close to the lateness are left out: they would be too late by the time a worker reads them.
MARGIN_MS = 300_000
CHUNK_LINES = 4_000
#: Chunks that Kafka has not confirmed yet; bounds memory.
CHUNKS_IN_FLIGHT = 4
EXAMPLES = 5


@dataclass(frozen=True)
class Window:
    """Lines whose own time is in [oldest_ms, newest_ms] are sent, moved by `shift_ms`."""

    shift_ms: int
    oldest_ms: int
    newest_ms: int


@dataclass(frozen=True)
class Example:
    """A malformed line: its number from 1, and why."""

    line: int
    reason: str
    error: str


@dataclass
class Report:
    """What became of the lines: `lines` = sent + malformed + too_old + too_new, unless Kafka failed (`error`)."""

    lines: int = 0
    sent: int = 0
    malformed: int = 0
    too_old: int = 0
    too_new: int = 0
    seconds: float = 0.0
    examples: list[Example] = field(default_factory=list)
    error: str | None = None


def window(
    found: Survey, *, now_ms: int, rebase: bool, lateness_h: int, early_h: int, rate: float | None = None
) -> Window:
    """Which times a worker will still accept. With `rebase` the newest line is moved to now.

    A slow replay (`rate`, lines/s) takes its own duration off the lateness as well.
    """
    shift_ms = now_ms - found.newest_ms if rebase and found.newest_ms is not None else 0
    margin_ms = MARGIN_MS + int(found.lines / rate * 1000) if rate else MARGIN_MS
    oldest_ms = now_ms - lateness_h * HOUR_MS + margin_ms
    newest_ms = now_ms + early_h * HOUR_MS - MARGIN_MS
    return Window(shift_ms, oldest_ms - shift_ms, newest_ms - shift_ms)


class Replay:
    """One replay. `run` sends; `report` tells, while it runs and after."""

    def __init__(self, publisher: EventPublisher, parse: Parse, taken: Window, occurrences: Occurrences) -> None:
        self.report = Report()
        self._publisher = publisher
        self._parse = parse
        self._window = taken
        self._occurrences = occurrences

    async def run(self, lines: Iterator[bytes], *, rate: float | None, progress: Callable[[int], None]) -> Report:
        """Send the lines in chunks, a few at a time, at most `rate` lines/s. Stops at the first that Kafka refuses."""
        started = time.monotonic()
        size = CHUNK_LINES if rate is None else max(1, min(CHUNK_LINES, int(rate / 10)))
        in_flight: set[asyncio.Task[None]] = set()
        try:
            while self.report.error is None and (chunk := list(islice(lines, size))):
                if len(in_flight) >= CHUNKS_IN_FLIGHT:
                    _, in_flight = await asyncio.wait(in_flight, return_when=asyncio.FIRST_COMPLETED)
                in_flight.add(asyncio.create_task(self._send(self._records(chunk))))
                progress(self.report.lines)
                due = self.report.lines / rate if rate else 0.0
                await asyncio.sleep(max(0.0, started + due - time.monotonic()))
        finally:
            if in_flight:
                await asyncio.wait(in_flight)
        self.report.seconds = time.monotonic() - started
        return self.report

    def _records(self, chunk: list[bytes]) -> list[Record]:
        records = []
        for line in chunk:
            occurrence = self._occurrences.number(line)
            self.report.lines += 1
            record = self._record(line, occurrence)
            if record is not None:
                records.append(record)
        return records

    def _record(self, line: bytes, occurrence: int) -> Record | None:
        parsed = self._parse(line)
        if isinstance(parsed, Malformed):
            self._refuse(parsed)
            return None
        if parsed.timestamp_ms < self._window.oldest_ms:
            self.report.too_old += 1
            return None
        if parsed.timestamp_ms > self._window.newest_ms:
            self.report.too_new += 1
            return None
        key = event_id(line, occurrence)
        value = event_json(parsed, key, self._window.shift_ms)
        if isinstance(value, Malformed):
            self._refuse(value)
            return None
        return key.encode(), value

    def _refuse(self, why: Malformed) -> None:
        self.report.malformed += 1
        if len(self.report.examples) < EXAMPLES:
            self.report.examples.append(Example(self.report.lines, why.reason, why.error))

    async def _send(self, records: list[Record]) -> None:
        if not records:
            return
        try:
            await self._publisher.publish(records)
            self.report.sent += len(records)
        except PublishUnavailable as error:
            self.report.error = self.report.error or str(error)
