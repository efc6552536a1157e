"""A gateway follows a topic of outcomes from its end: read_committed, without a group, through every outage."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Any

import structlog
from aiokafka import AIOKafkaConsumer
from aiokafka.errors import KafkaError

from streams.runtime.awaited import awaited_partitions

_RETRY_S = 1.0

log = structlog.get_logger(__name__)


class TopicTail:
    """Hands on every record that was committed after the start; after an outage it goes on where it was."""

    def __init__(self, connection: Mapping[str, Any], topic: str, note: Callable[[bytes, bytes | None], None]) -> None:
        self.following = asyncio.Event()
        self._connection = connection
        self._topic = topic
        self._note = note
        self._positions: dict[int, int] = {}
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Begin to follow; connects, and connects again, by itself."""
        self._task = asyncio.create_task(self._run(), name=f"tail {self._topic}")

    async def stop(self) -> None:
        """Stop following."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _run(self) -> None:
        told = ""
        while True:
            try:
                await self._follow()
            except (KafkaError, OSError, TimeoutError) as error:
                if type(error).__name__ != told:
                    log.warning("tail_interrupted", topic=self._topic, error=str(error) or type(error).__name__)
                told = type(error).__name__
            await asyncio.sleep(_RETRY_S)

    async def _follow(self) -> None:
        consumer = AIOKafkaConsumer(
            isolation_level="read_committed",
            enable_auto_commit=False,
            auto_offset_reset="latest",
            metadata_max_age_ms=30_000,
            **self._connection,
        )
        try:
            await consumer.start()
            partitions = await awaited_partitions(consumer, self._topic)
            consumer.assign(partitions)
            unknown = [tp for tp in partitions if tp.partition not in self._positions]
            if unknown:
                ends = await consumer.end_offsets(unknown)
                self._positions |= {tp.partition: end for tp, end in ends.items()}
            for tp in partitions:
                consumer.seek(tp, self._positions[tp.partition])
            self.following.set()
            while True:
                for tp, records in (await consumer.getmany(timeout_ms=500)).items():
                    for record in records:
                        self._note(record.key or b"", record.value)
                        self._positions[tp.partition] = record.offset + 1
        finally:
            await consumer.stop()
