"""Reads dead-letter topics: all letters up to now, or one. Reads committed records, in no group."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Collection, Mapping
from typing import Any

from aiokafka import AIOKafkaConsumer, TopicPartition

from topics.deadletters import Letter, LetterId, read_letter

_FETCH_BYTES = 8 << 20
_POLL_MS = 500


class LetterLog:
    """The dead-letter topics among `topics` that exist. Use it as a context; raises the client's errors without a broker.

    `partitions` says how many each topic of the cluster has; `progress` hears how many offsets of how many a `read` has passed.
    """

    def __init__(
        self,
        client_settings: dict[str, Any],
        topics: Collection[str],
        partitions: Mapping[str, int],
        progress: Callable[[int, int], None] = lambda done, total: None,
    ) -> None:
        self._progress = progress
        self._topics = topics
        self._partitions = partitions
        self._starts: dict[TopicPartition, int | None] = {}
        self._consumer = AIOKafkaConsumer(
            isolation_level="read_committed",
            enable_auto_commit=False,
            auto_offset_reset="earliest",
            max_partition_fetch_bytes=_FETCH_BYTES,
            fetch_max_bytes=_FETCH_BYTES,
            check_crcs=True,
            **client_settings,
        )

    async def __aenter__(self) -> LetterLog:
        try:
            await self._consumer.start()
        except BaseException:
            await self._consumer.stop()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        # A task of the client's that has not begun yet answers its cancellation with one of whoever stops it.
        await asyncio.sleep(0)
        await self._consumer.stop()

    async def bounds(self) -> dict[TopicPartition, tuple[int, int]]:
        """The first offset of each partition, and the end of what can be read of it."""
        parts = [TopicPartition(t, p) for t in sorted(self._topics) for p in range(self._partitions.get(t, 0))]
        if not parts:
            return {}
        starts, ends = await self._consumer.beginning_offsets(parts), await self._consumer.end_offsets(parts)
        return {tp: (starts[tp], ends[tp]) for tp in sorted(parts)}

    async def first_since(self, parts: Collection[TopicPartition], time_ms: int) -> dict[TopicPartition, int | None]:
        """The first offset of each partition that was written at `time_ms` or later; None where there is none."""
        found = await self._consumer.offsets_for_times(dict.fromkeys(parts, time_ms))
        return {tp: None if at is None else at.offset for tp, at in found.items()}

    async def log_start(self, topic: str, partition: int) -> int | None:
        """Where any topic's partition started when this was asked first; None for one that does not exist."""
        tp = TopicPartition(topic, partition)
        if tp not in self._starts:
            known = partition < self._partitions.get(topic, 0)
            self._starts[tp] = (await self._consumer.beginning_offsets([tp]))[tp] if known else None
        return self._starts[tp]

    async def read(self, ranges: Mapping[TopicPartition, tuple[int, int]]) -> AsyncIterator[list[Letter]]:
        """The letters in a range of offsets of each partition, those of one partition in order, in lists."""
        left = {tp: end for tp, (start, end) in ranges.items() if start < end}
        at = {tp: ranges[tp][0] for tp in left}
        total = sum(left[tp] - start for tp, start in at.items())
        if left:
            self._consumer.assign(list(left))
        for tp in left:
            self._consumer.seek(tp, ranges[tp][0])
        while left:
            for tp, records in (await self._consumer.getmany(*left, timeout_ms=_POLL_MS)).items():
                letters = [
                    read_letter(LetterId(tp.topic, tp.partition, r.offset), r.timestamp, r.key, r.value, r.headers)
                    for r in records
                    if r.offset < left[tp]
                ]
                if letters:
                    yield letters
            for tp, end in list(left.items()):
                at[tp] = min(end, await self._consumer.position(tp))
                if at[tp] == end:
                    del left[tp]
                    self._consumer.pause(tp)
            self._progress(sum(here - ranges[tp][0] for tp, here in at.items()), total)

    async def find(self, id: LetterId) -> Letter | None:
        """One letter; None if there is none at this place."""
        tp = TopicPartition(id.topic, id.partition)
        start, end = (await self.bounds()).get(tp, (0, 0))
        if not start <= id.offset < end:
            return None
        async for letters in self.read({tp: (id.offset, id.offset + 1)}):
            return letters[0]
        return None
