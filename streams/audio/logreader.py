"""Reads a segment's chunks from the log again: what memory did not hold, or let go of."""

from __future__ import annotations

import asyncio
from typing import Any, Protocol

from aiokafka import AIOKafkaConsumer, TopicPartition

from streams.audio.effects import PutSegment
from streams.audio.picking import Picker
from topics.records import Record

_FETCH_BYTES = 1 << 20


class LogGone(Exception):
    """The log no longer holds a segment's chunks; the message says what is missing."""


class ChunkReader(Protocol):
    """Where chunks are read again."""

    async def chunks(self, partition: int, wanted: PutSegment) -> list[bytes]:
        """A segment's chunks by seq. Raises LogGone, or the client's errors while the log cannot be read."""


class LogReader:
    """Reads one segment at a time for a whole worker, so that its memory is bounded by a segment and a fetch."""

    def __init__(self, topic: str, client_settings: dict[str, Any], chunk_bytes_max: int) -> None:
        self._topic = topic
        self._client_settings = client_settings
        self._chunk_bytes_max = chunk_bytes_max
        self._turn = asyncio.Lock()

    async def chunks(self, partition: int, wanted: PutSegment) -> list[bytes]:
        """See `ChunkReader`."""
        async with self._turn:
            return await self._read(TopicPartition(self._topic, partition), wanted)

    async def _read(self, tp: TopicPartition, wanted: PutSegment) -> list[bytes]:
        picker = Picker(wanted, self._chunk_bytes_max)
        consumer = AIOKafkaConsumer(
            isolation_level="read_committed",
            enable_auto_commit=False,
            auto_offset_reset="none",
            max_partition_fetch_bytes=_FETCH_BYTES,
            fetch_max_bytes=_FETCH_BYTES,
            check_crcs=True,
            **self._client_settings,
        )
        try:
            await consumer.start()
            consumer.assign([tp])
            start = (await consumer.beginning_offsets([tp]))[tp]
            if start > wanted.first_offset:
                raise LogGone(f"the log starts at {start}, its first chunk was at {wanted.first_offset}")
            consumer.seek(tp, wanted.first_offset)
            while await consumer.position(tp) <= wanted.last_offset:
                for found in (await consumer.getmany(tp, timeout_ms=500)).get(tp, ()):
                    picker.feed(Record(found.offset, found.timestamp, found.value, found.key, found.headers))
        finally:
            await consumer.stop()
        chunks = picker.chunks
        if chunks is None:
            at = f"offsets {wanted.first_offset} to {wanted.last_offset}"
            raise LogGone(f"{at} do not hold all of the chunks {wanted.first_seq} to {wanted.last_seq}")
        return chunks
