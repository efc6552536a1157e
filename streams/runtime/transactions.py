"""One partition's transactional producer: what a flush writes becomes visible all at once, together with its offset.

The transactional id is the partition's own, so that starting a producer fences every earlier owner: its open transaction
is aborted and its later sends are refused. A producer is started once a take-over and never made again; after any error
the outcome of a flush may be unknown, and the process ends (see `partition`).
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Iterable
from typing import Any

from aiokafka import AIOKafkaProducer, TopicPartition
from aiokafka.structs import OffsetAndMetadata

from streams.runtime.faults import Faults
from topics.partitioning import partition_of
from topics.records import Emit

#: Producer batches; a dedup block of a busy flush fits one.
MAX_BATCH_BYTES = 1 << 20


class PartitionProducer:
    """Fences on `start`, then commits one flush at a time."""

    def __init__(
        self, transactional_id: str, timeout_s: float, client_settings: dict[str, Any], faults: Faults
    ) -> None:
        self._faults = faults
        self._producer = AIOKafkaProducer(
            transactional_id=transactional_id,
            transaction_timeout_ms=int(timeout_s * 1000),
            request_timeout_ms=int(timeout_s * 1000),
            linger_ms=0,
            max_batch_size=MAX_BATCH_BYTES,
            max_request_size=8 << 20,
            # aiokafka's lz4 runs at its highest level, ten times slower than this and no smaller.
            compression_type="zstd",
            **client_settings,
        )

    async def start(self) -> None:
        """Fence all earlier owners. Returns when their transactions are finished."""
        await self._producer.start()

    async def stop(self) -> None:
        """Close; an open transaction is left to the next owner's fence or the broker's time-out."""
        await self._producer.stop()

    async def commit(self, group: str, source: TopicPartition, next_offset: int, emits: Iterable[Emit]) -> None:
        """Write `emits` and the group's offset in one transaction. Raises on any doubt; never call again after that."""
        self._faults.reach("begin.before")
        await self._producer.begin_transaction()
        self._faults.reach("begin.after")
        await self._send(emits)
        self._faults.reach("offsets.before")
        await self._producer.send_offsets_to_transaction({source: OffsetAndMetadata(next_offset, "")}, group)
        self._faults.reach("offsets.after")
        self._faults.reach("commit.before")
        await self._producer.commit_transaction()
        self._faults.reach("commit.after")

    async def _send(self, emits: Iterable[Emit]) -> None:
        self._faults.reach("send.before")
        grouped: dict[tuple[str, int], list[Emit]] = defaultdict(list)
        for emit in emits:
            grouped[emit.topic, await self._partition(emit)].append(emit)
        await asyncio.gather(*(self._send_batches(*at, group) for at, group in grouped.items()))
        self._faults.reach("send.after")

    async def _partition(self, emit: Emit) -> int:
        if emit.partition is not None:
            return emit.partition
        return partition_of(emit.key or b"", len(await self._producer.partitions_for(emit.topic)))

    async def _send_batches(self, topic: str, partition: int, emits: list[Emit]) -> None:
        """Send many records of one partition as whole batches: a record costs a microsecond or two, not a future."""
        sent: list[asyncio.Future[Any]] = []
        builder = self._producer.create_batch()
        for emit in emits:
            record = {"key": emit.key, "value": emit.value, "timestamp": None, "headers": list(emit.headers)}
            if builder.append(**record) is None:
                sent.append(await self._producer.send_batch(builder, topic, partition=partition))
                builder = self._producer.create_batch()
                if builder.append(**record) is None:
                    raise ValueError(f"a record of {len(emit.value or b'')} bytes does not fit a batch of {topic}")
        if builder.record_count():
            sent.append(await self._producer.send_batch(builder, topic, partition=partition))
        await asyncio.gather(*sent)
