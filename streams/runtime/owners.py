"""Who owns which partition: announcements in a compacted topic, written inside the take-over's transaction.

A gateway that needs a key's state asks the owner of its partition; a higher term is the later owner.
"""

from __future__ import annotations

import asyncio
import os
from typing import Any

import msgspec
from aiokafka import AIOKafkaConsumer
from aiokafka.errors import KafkaError

from streams.runtime.awaited import awaited_partitions
from streams.runtime.changelog import read_changelog
from topics.records import Emit
from topics.specs import OWNERS


class Owner(msgspec.Struct, frozen=True):
    """One announcement. `url` is the owner's status endpoint."""

    stream: str
    partition: int
    url: str
    term: int
    pid: int


def announcement(stream: str, partition: int, url: str, term: int) -> Emit:
    """The record by which the owner of a partition makes itself known."""
    owner = Owner(stream, partition, url, term, os.getpid())
    return Emit(OWNERS, f"{stream}/{partition}".encode(), msgspec.json.encode(owner))


def decode_owner(value: bytes) -> Owner:
    """Read an announcement. Raises msgspec.DecodeError for anything else."""
    return msgspec.json.decode(value, type=Owner)


class OwnersTail:
    """Follows the announcements in the background; `owners` is the last word on each (stream, partition)."""

    def __init__(self, client_settings: dict[str, Any]) -> None:
        self.owners: dict[tuple[str, int], Owner] = {}
        self._client_settings = client_settings
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Begin to follow; connects, and connects again, by itself."""
        self._task = asyncio.create_task(self._run())

    async def stop(self) -> None:
        """Stop following."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    def urls(self) -> dict[str, list[Owner]]:
        """The partitions that each worker's status endpoint answers for."""
        found: dict[str, list[Owner]] = {}
        for owner in self.owners.values():
            found.setdefault(owner.url, []).append(owner)
        return found

    def note(self, key: bytes, value: bytes | None) -> None:
        """Take one announcement; a lower term than the known one is an earlier owner's."""
        if value is None:
            return
        try:
            owner = decode_owner(value)
        except msgspec.DecodeError:
            return
        known = self.owners.get((owner.stream, owner.partition))
        if known is None or owner.term >= known.term:
            self.owners[owner.stream, owner.partition] = owner

    async def _run(self) -> None:
        while True:
            try:
                await self._follow()
            except KafkaError:
                await asyncio.sleep(1.0)

    async def _follow(self) -> None:
        consumer = AIOKafkaConsumer(isolation_level="read_committed", enable_auto_commit=False, **self._client_settings)
        try:
            await consumer.start()
            partitions = await awaited_partitions(consumer, OWNERS)
            consumer.assign(partitions)
            await consumer.seek_to_beginning(*partitions)
            while True:
                for records in (await consumer.getmany(timeout_ms=500)).values():
                    for record in records:
                        self.note(record.key or b"", record.value)
        finally:
            await consumer.stop()


async def current_owners(client_settings: dict[str, Any]) -> OwnersTail:
    """The announcements up to now, read once."""
    tail = OwnersTail(client_settings)
    async for records in read_changelog(OWNERS, 0, client_settings):
        for key, value in records:
            tail.note(key, value)
    return tail
