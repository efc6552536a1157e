"""What `sluiceway dlq` does to dead letters: which are meant, what can be done with each, and doing it."""

from __future__ import annotations

import asyncio
import heapq
import re
from collections import Counter
from collections.abc import AsyncIterator, Callable, Collection, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from aiokafka import TopicPartition

from compose.clients import bucket
from compose.kafka import kafka_access
from compose.settings import Settings
from compose.stream_processes import STREAMS
from sinks.objects import Bucket
from streams.runtime.admin import TopicAdmin
from streams.runtime.letters import LetterLog
from streams.runtime.replays import Outgoing, Replayer, Replays, read_replays
from topics.deadletters import Letter, LetterId, deadletter_topic
from topics.specs import REPLAYS, replays

#: Records and bytes of one transaction of a replay.
_CHUNK_LETTERS, _CHUNK_BYTES = 500, 8 << 20
#: How long the object store may take to answer, seconds.
STORE_S = 30.0
_DURATION = re.compile(r"([0-9]+)([smhd])")
_UNIT_MS = {"s": 1_000, "m": 60_000, "h": 3_600_000, "d": 86_400_000}


class DlqError(Exception):
    """What was asked for cannot be done; the message says why."""


@dataclass(frozen=True)
class Wanted:
    """Which letters are meant: all that fit every field that is set. `since_ms` is compared with the letter's own time."""

    stream: str = ""
    reason: str = ""
    producer: str | None = None
    since_ms: int | None = None

    @property
    def topics(self) -> list[str]:
        """The dead-letter topics to look at."""
        return [deadletter_topic(stream) for stream in ([self.stream] if self.stream else STREAMS)]

    def fits(self, letter: Letter) -> bool:
        """Whether a letter is meant."""
        return (
            (not self.reason or letter.reason == self.reason)
            and (self.producer is None or letter.producer == self.producer)
            and (self.since_ms is None or letter.written_ms >= self.since_ms)
        )


@dataclass
class Found:
    """What a look at the letters gave: how many there are of each (stream, reason, producer), and the newest of them.
    `died_again` tells which letter came of the replay of another."""

    counts: Counter[tuple[str, str, str]] = field(default_factory=Counter)
    newest: list[Letter] = field(default_factory=list)
    died_again: dict[str, LetterId] = field(default_factory=dict)
    replays: Replays = field(default_factory=Replays)

    def state(self, letter: Letter) -> str:
        """What has become of a letter, in a word or two."""
        if (again := self.died_again.get(str(letter.id))) is not None:
            return f"died again as {again}"
        if (last := self.replays.of(letter)) is not None:
            return f"replayed {utc(last.replayed_ms)}"
        return "dead"


@dataclass
class Plan:
    """Which letters a replay takes, and why it leaves others: `obstacles` by their ids, `done` were replayed before."""

    take: list[LetterId] = field(default_factory=list)
    obstacles: dict[LetterId, str] = field(default_factory=dict)
    done: list[LetterId] = field(default_factory=list)


def parse_time(text: str, now_ms: int) -> int:
    """Unix ms of a time as users write it: so long ago (`90m`, `24h`, `7d`), or in ISO 8601, UTC unless it says otherwise.

    Raises ValueError.
    """
    if ago := _DURATION.fullmatch(text):
        return now_ms - int(ago[1]) * _UNIT_MS[ago[2]]
    at = datetime.fromisoformat(text)
    return int((at if at.tzinfo else at.replace(tzinfo=UTC)).timestamp() * 1000)


def utc(time_ms: int) -> str:
    """A time as it is shown."""
    return datetime.fromtimestamp(time_ms / 1000, UTC).strftime("%Y-%m-%d %H:%M:%S")


class Dlq:
    """The operations. Raises DlqError, and Kafka's errors without a broker. `progress` hears how many offsets of how many
    are read and dealt with."""

    def __init__(self, settings: Settings, progress: Callable[[int, int], None] = lambda done, total: None) -> None:
        self._settings = settings
        self._progress = progress
        self._clients = kafka_access(settings).aiokafka()
        self._admin = TopicAdmin(kafka_access(settings).librdkafka(), settings.replication_factor)

    async def look(self, wanted: Wanted, newest: int) -> Found:
        """Count the letters, and keep the `newest`."""
        found = Found(replays=await self._replays())
        heap: list[tuple[int, LetterId, Letter]] = []
        async with await self._log(wanted.topics) as log:
            async for letter in self._letters(log, wanted, await log.bounds()):
                if letter.replay_of:
                    found.died_again[letter.replay_of] = letter.id
                if wanted.fits(letter):
                    found.counts[letter.stream, letter.reason, letter.producer] += 1
                    heapq.heappush(heap, (letter.written_ms, letter.id, letter))
                    if len(heap) > newest:
                        heapq.heappop(heap)
        found.newest = [letter for *_, letter in sorted(heap)]
        return found

    async def find(self, id: LetterId) -> Letter:
        """One letter."""
        async with await self._log([id.topic]) as log:
            return await self._find(log, id)

    async def value(self, letter: Letter) -> bytes | None:
        """The record's bytes, wherever they lie."""
        if not letter.object_key:
            return letter.value
        objects = bucket(self._settings)
        try:
            return await self._fetch(objects, letter)
        finally:
            await objects.close()

    async def history(self, letter: Letter) -> Found:
        """What is known of a letter's replays."""
        return await self.look(Wanted(stream=letter.stream, since_ms=letter.written_ms), 0)

    async def plan(self, wanted: Wanted, limit: int | None, again: bool, only: LetterId | None = None) -> Plan:
        """What a replay would take: the oldest first, `limit` at most, each once, and none twice unless `again`."""
        replayed, plan = await self._replays(), Plan()
        async with await self._log([only.topic] if only else wanted.topics) as log:
            if only is not None:
                letter = await self._find(log, only)
                await self._judge(log, plan, letter, replayed, again)
                return plan
            written_ms: dict[LetterId, int] = {}
            async for letter in self._letters(log, wanted, await log.bounds()):
                if wanted.fits(letter):
                    await self._judge(log, plan, letter, replayed, again)
                    written_ms[letter.id] = letter.written_ms
        plan.take = sorted(plan.take, key=written_ms.__getitem__)[:limit]
        return plan

    async def replay(self, plan: Plan, again: bool) -> tuple[int, dict[LetterId, str]]:
        """Send what the plan takes. Returns how many were sent, and why others were not."""
        if not plan.take:
            return 0, {}
        await self._admin.ensure([replays(self._settings.deadletter_retention_h)])
        objects = bucket(self._settings)
        refused: dict[LetterId, str] = {}
        sent = 0
        try:
            async with (
                await self._log({id.topic for id in plan.take}) as log,
                Replayer(self._clients) as replayer,
            ):
                async for chunk in self._chunks(log, plan):
                    left = [letter for letter in chunk if again or replayer.replays.of(letter) is None]
                    outgoing = []
                    for letter in left:
                        try:
                            outgoing.append(Outgoing(letter, await self._fetch(objects, letter)))
                        except DlqError as error:
                            refused[letter.id] = str(error)
                    not_taken = await replayer.send(outgoing)
                    refused |= not_taken
                    sent += len(outgoing) - len(not_taken)
        finally:
            await objects.close()
        return sent, refused

    async def purgeable(self, wanted: Wanted, until: LetterId | None) -> dict[TopicPartition, tuple[int, int]]:
        """The offsets to remove of each partition: up to and including `until`, or all before the first letter that is not
        older than `wanted.since_ms`."""
        async with await self._log([until.topic] if until else wanted.topics) as log:
            bounds = await log.bounds()
            if until is not None:
                await self._find(log, until)
                tp = TopicPartition(until.topic, until.partition)
                return {tp: (bounds[tp][0], until.offset + 1)}
            assert wanted.since_ms is not None
            younger = await log.first_since(bounds, wanted.since_ms)
            ends = {tp: end if (at := younger[tp]) is None else min(at, end) for tp, (_, end) in bounds.items()}
            return {tp: (start, ends[tp]) for tp, (start, _) in bounds.items() if start < ends[tp]}

    async def count(self, ranges: dict[TopicPartition, tuple[int, int]]) -> int:
        """How many letters lie there."""
        count = 0
        async with await self._log({tp.topic for tp in ranges}) as log:
            async for letters in log.read(ranges):
                count += len(letters)
        return count

    async def purge(self, ranges: dict[TopicPartition, tuple[int, int]]) -> int:
        """Remove letters for good, and what lies in the object store for them, that first: a letter cut off from its
        object is seen, an object without a letter is not. Returns how many there were."""
        objects, count = bucket(self._settings), 0
        try:
            async with await self._log({tp.topic for tp in ranges}) as log:
                async for letters in log.read(ranges):
                    count += len(letters)
                    keys = [letter.object_key for letter in letters if letter.owns_object]
                    if keys:
                        await self._answer(objects.delete_many(keys))
        finally:
            await objects.close()
        await self._admin.delete_before({(tp.topic, tp.partition): end for tp, (_, end) in ranges.items()})
        return count

    async def _log(self, topics: Collection[str]) -> LetterLog:
        return LetterLog(self._clients, topics, await self._admin.partitions(), self._progress)

    async def _letters(
        self, log: LetterLog, wanted: Wanted, bounds: dict[TopicPartition, tuple[int, int]]
    ) -> AsyncIterator[Letter]:
        if wanted.since_ms is not None:
            since = await log.first_since(bounds, wanted.since_ms)
            bounds = {tp: (max(bounds[tp][0], at), bounds[tp][1]) for tp, at in since.items() if at is not None}
        async for letters in log.read(bounds):
            for letter in letters:
                yield letter

    async def _replays(self) -> Replays:
        return await read_replays(self._clients) if REPLAYS in await self._admin.partitions() else Replays()

    async def _find(self, log: LetterLog, id: LetterId) -> Letter:
        letter = await log.find(id)
        if letter is None:
            start, end = (await log.bounds()).get(TopicPartition(id.topic, id.partition), (0, 0))
            holds = f"that partition holds offsets {start} to {end - 1}" if start < end else "nothing lies there"
            raise DlqError(f"there is no dead letter {id}: {holds}. `sluiceway dlq list` tells those there are")
        return letter

    async def _judge(self, log: LetterLog, plan: Plan, letter: Letter, replayed: Replays, again: bool) -> None:
        if obstacle := await self._obstacle(log, letter):
            plan.obstacles[letter.id] = obstacle
        elif replayed.of(letter) is not None and not again:
            plan.done.append(letter.id)
        else:
            plan.take.append(letter.id)

    async def _obstacle(self, log: LetterLog, letter: Letter) -> str:
        if letter.no_record:
            return letter.no_record
        start = await log.log_start(letter.source_topic, letter.source_partition)
        if start is None:
            return f"{letter.source_topic} has no partition {letter.source_partition} any more"
        if letter.needs_log and letter.source_offset < start:
            return (
                f"what it is about is gone: {letter.source_topic}[{letter.source_partition}] now starts at {start}, its "
                f"first record was at {letter.source_offset}"
            )
        return ""

    async def _chunks(self, log: LetterLog, plan: Plan) -> AsyncIterator[Sequence[Letter]]:
        """The plan's letters, in what fits a transaction."""
        places: dict[TopicPartition, set[int]] = {}
        for id in plan.take:
            places.setdefault(TopicPartition(id.topic, id.partition), set()).add(id.offset)
        chunk: list[Letter] = []
        size = 0
        async for letters in log.read({tp: (min(at), max(at) + 1) for tp, at in places.items()}):
            for letter in letters:
                if letter.id.offset in places[TopicPartition(letter.id.topic, letter.id.partition)]:
                    chunk.append(letter)
                    size += len(letter.value or b"")
                    if len(chunk) >= _CHUNK_LETTERS or size >= _CHUNK_BYTES or letter.object_key:
                        yield chunk
                        chunk, size = [], 0
        if chunk:
            yield chunk

    async def _fetch(self, objects: Bucket, letter: Letter) -> bytes | None:
        if not letter.object_key:
            return letter.value
        data: bytes | None = await self._answer(objects.get(letter.object_key))
        if data is None:
            raise DlqError(f"its bytes are gone: the object store has no {letter.object_key}")
        return data

    async def _answer(self, asked: Any) -> Any:
        try:
            async with asyncio.timeout(STORE_S):
                return await asked
        except TimeoutError:
            raise DlqError(f"the object store at {self._settings.s3_endpoint} does not answer") from None
