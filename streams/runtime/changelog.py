"""The changelog of one partition: reading it back fast, and the runtime's own record in it.

A changelog partition holds the fold's records and one record of the runtime, `META_KEY`: the cursor, the epoch and the
term. All of a flush is one transaction, so what is read back is always the state after some flush, whole.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import msgspec
from aiokafka import AIOKafkaConsumer, TopicPartition

META_KEY = b"\x00meta"
_FETCH_BYTES = 8 << 20


class Meta(msgspec.Struct, frozen=True):
    """Where a partition's fold stands. `cursor` is the next source offset to fold; all below it is in the state.

    `epoch` rises when the source topic was made anew; `term` with each take-over, by which late answers of an earlier
    owner are told apart; `partitions` is the source topic's partition count, which must not change.
    """

    topic_id: str
    partitions: int
    epoch: int
    term: int
    cursor: int
    format: int = 1

    def encode(self) -> bytes:
        """The record's value."""
        return msgspec.json.encode(self)


def decode_meta(value: bytes) -> Meta:
    """The runtime's record. Raises msgspec.DecodeError for a changelog that another program wrote."""
    return msgspec.json.decode(value, type=Meta)


async def read_changelog(
    topic: str, partition: int, client_settings: dict[str, Any]
) -> AsyncIterator[list[tuple[bytes, bytes | None]]]:
    """All committed records of a changelog partition up to its end at the call, in log order, in lists.

    Call it after fencing: the end is then stable, and no open transaction lies before it.
    """
    consumer = AIOKafkaConsumer(
        isolation_level="read_committed",
        enable_auto_commit=False,
        max_partition_fetch_bytes=_FETCH_BYTES,
        fetch_max_bytes=_FETCH_BYTES,
        check_crcs=True,
        **client_settings,
    )
    try:
        await consumer.start()
        tp = TopicPartition(topic, partition)
        consumer.assign([tp])
        await consumer.seek_to_beginning(tp)
        end = (await consumer.end_offsets([tp]))[tp]
        while await consumer.position(tp) < end:
            fetched = await consumer.getmany(tp, timeout_ms=200, max_records=50_000)
            records = [(r.key or b"", r.value) for r in fetched.get(tp, ()) if r.offset < end]
            if records:
                yield records
    finally:
        await consumer.stop()
