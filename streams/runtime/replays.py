"""Sends dead letters back to where they came from, and remembers that.

A letter's record and the note of its replay are written in one transaction: the compacted topic `sluiceway.replays.v1` holds,
under the letter's id, the last replay of it, exactly when the record is in its source topic. There is one replayer at a time,
and it reads the notes after it has fenced the one before: a replay that was cut off is begun again, and sends what is missing.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
from aiokafka import AIOKafkaProducer
from aiokafka.errors import MessageSizeTooLargeError, ProducerFenced

from streams.runtime.changelog import read_changelog
from topics.deadletters import Letter, LetterId, replayed_headers
from topics.headers import Headers
from topics.partitioning import partition_of
from topics.specs import REPLAYS

_TRANSACTIONAL_ID = "sluiceway-dlq-replay"
_TRANSACTION_S = 60
#: A record came in compressed, and may be far larger than a topic's limit, which is for what is sent.
_REQUEST_BYTES = 256 << 20


class Replayed(msgspec.Struct, frozen=True):
    """The last replay of a letter: when, how many there were, and where the record was written. `written_ms` is the letter's
    own time: in a topic made anew another letter may have its id."""

    written_ms: int
    replayed_ms: int
    times: int
    to: str


class Replays:
    """What was replayed, by letter."""

    def __init__(self) -> None:
        self._last: dict[str, Replayed] = {}

    def __len__(self) -> int:
        return len(self._last)

    def of(self, letter: Letter) -> Replayed | None:
        """The last replay of a letter; None if there was none."""
        found = self._last.get(str(letter.id))
        return found if found is not None and found.written_ms == letter.written_ms else None

    def note(self, id: str, replayed: Replayed | None) -> None:
        """Take a note of the topic."""
        if replayed is None:
            self._last.pop(id, None)
        else:
            self._last[id] = replayed


async def read_replays(client_settings: dict[str, Any]) -> Replays:
    """All notes up to now."""
    found = Replays()
    async for records in read_changelog(REPLAYS, 0, client_settings):
        for key, value in records:
            try:
                noted = None if value is None else msgspec.json.decode(value, type=Replayed)
            except msgspec.DecodeError:
                continue
            found.note(key.decode("utf-8", "replace"), noted)
    return found


@dataclass(frozen=True, slots=True)
class Outgoing:
    """A letter and its record's bytes, wherever they lay."""

    letter: Letter
    value: bytes | None


class Replayer:
    """Writes replayed records. Use it as a context; from then on `replays` holds all that earlier ones have sent."""

    def __init__(self, client_settings: dict[str, Any]) -> None:
        self.replays = Replays()
        self._client_settings = client_settings
        self._producer = AIOKafkaProducer(
            transactional_id=_TRANSACTIONAL_ID,
            transaction_timeout_ms=_TRANSACTION_S * 1000,
            max_request_size=_REQUEST_BYTES,
            compression_type="zstd",
            **client_settings,
        )

    async def __aenter__(self) -> Replayer:
        try:
            await self._producer.start()
            self.replays = await read_replays(self._client_settings)
        except BaseException:
            await self._producer.stop()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._producer.stop()

    async def send(self, outgoing: Sequence[Outgoing]) -> dict[LetterId, str]:
        """Write the records of some letters, and that they were; all or none. Returns those that their topic does not take,
        and why.

        Raises the client's errors: ProducerFenced when another replay has begun meanwhile.
        """
        refused: dict[LetterId, str] = {}
        while left := [one for one in outgoing if one.letter.id not in refused]:
            found = await self._attempt(left)
            if not found:
                break
            refused |= found
        return refused

    async def _attempt(self, outgoing: Sequence[Outgoing]) -> dict[LetterId, str]:
        await self._producer.begin_transaction()
        try:
            refused = await self._write(outgoing)
        except ProducerFenced:
            # Whoever fenced this one has ended its transaction too.
            raise
        except BaseException:
            await self._producer.abort_transaction()
            raise
        if refused:
            await self._producer.abort_transaction()
            return refused
        await self._producer.commit_transaction()
        return {}

    async def _write(self, outgoing: Sequence[Outgoing]) -> dict[LetterId, str]:
        now_ms = time.time_ns() // 1_000_000
        before = [self.replays.of(one.letter) for one in outgoing]
        times = [1 if last is None else last.times + 1 for last in before]
        sent = [await self._send(one, number) for one, number in zip(outgoing, times, strict=True)]
        results = await asyncio.gather(*sent, return_exceptions=True)
        refused: dict[LetterId, str] = {}
        notes: list[tuple[str, Replayed]] = []
        for one, number, result in zip(outgoing, times, results, strict=True):
            if isinstance(result, MessageSizeTooLargeError):
                refused[one.letter.id] = (
                    f"{one.letter.source_topic} does not take a record of {len(one.value or b'')} bytes"
                )
            elif isinstance(result, BaseException):
                if not refused:
                    raise result
            else:
                to = f"{result.topic}/{result.partition}/{result.offset}"
                notes.append((str(one.letter.id), Replayed(one.letter.written_ms, now_ms, number, to)))
        if refused:
            return refused
        noted = [await self._producer.send(REPLAYS, msgspec.json.encode(note), id.encode(), 0) for id, note in notes]
        await asyncio.gather(*noted)
        for id, note in notes:
            self.replays.note(id, note)
        return {}

    async def _send(self, one: Outgoing, times: int) -> asyncio.Future[Any]:
        letter = one.letter
        headers: Headers = replayed_headers(letter, times)
        partition = partition_of(letter.key or b"", len(await self._producer.partitions_for(letter.source_topic)))
        try:
            sending: asyncio.Future[Any] = await self._producer.send(
                letter.source_topic, one.value, letter.key, partition, headers=list(headers)
            )
        except MessageSizeTooLargeError as error:
            sending = asyncio.get_running_loop().create_future()
            sending.set_exception(error)
        return sending
