"""From the bytes of one fetch to a `Batch`: what a reader may see of them, and what no reader can decode kept whole.

aiokafka's decoder does the work at its speed. It gives up a whole batch for one thing it dislikes, though, so a batch it
refuses is looked at once more, record by record (see `recordbytes`).
"""

from __future__ import annotations

import struct
from typing import Any

import numpy as np
import numpy.typing as npt
from aiokafka.consumer import fetcher
from aiokafka.consumer.fetcher import PartitionRecords
from aiokafka.errors import CorruptRecordException
from aiokafka.record.memory_records import MemoryRecords

from streams.runtime.recordbytes import Record, salvage
from topics.records import Batch, Headers, Unreadable

_LENGTH = struct.Struct(">i")
_LENGTH_AT = 8
_OVERHEAD_BYTES = 12
_LOG_APPEND_TIME = 1
_NONE = np.empty(0, dtype=np.int64)


class FetchedRecords:
    """aiokafka's `MemoryRecords` with one thing more: the bytes of the batch that was read last."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._records = MemoryRecords(data)
        self._next = 0
        self.batch_bytes = b""

    def size_in_bytes(self) -> int:
        """Bytes of the fetch."""
        return len(self._data)

    def has_next(self) -> bool:
        """Whether there is another whole batch."""
        return bool(self._records.has_next())

    def next_batch(self) -> Any:
        """The next batch, as aiokafka decodes it."""
        start = self._next
        (length,) = _LENGTH.unpack_from(self._data, start + _LENGTH_AT)
        self._next = start + _OVERHEAD_BYTES + length
        self.batch_bytes = self._data[start : self._next]
        return self._records.next_batch()


def keep_fetched_bytes() -> None:
    """Make aiokafka's fetchers keep the bytes they decode: its own class, compiled, lets nobody at them."""
    fetcher.MemoryRecords = FetchedRecords


def decode_fetch(topic: str, partition: int, fetched: PartitionRecords) -> Batch:
    """Decode all of one fetch into columns, leaving out aborted transactions and control records.

    Leaves `fetched.next_fetch_offset` at the position after the fetch. What cannot be decompressed or parsed is reported
    as `Unreadable`, with the bytes of its batch, and passed over. Raises CorruptRecordException for a checksum mismatch
    (a fault of disk or network: it is fetched again, not skipped).
    """
    begin = fetched.next_fetch_offset
    columns = _Columns()
    log: FetchedRecords = fetched._records
    while log.has_next():
        raw = log.next_batch()
        if not raw.validate_crc():
            raise CorruptRecordException(f"Invalid CRC: {topic}[{partition}] at {raw.base_offset}")
        if not (_aborted(fetched, raw) or raw.is_control_batch):
            columns.extend(raw, log, fetched.next_fetch_offset)
        fetched.next_fetch_offset = raw.next_offset
    return columns.batch(topic, partition, begin, fetched.next_fetch_offset)


def _aborted(fetched: PartitionRecords, raw: Any) -> bool:
    if raw.producer_id is None:
        return False
    fetched._consume_aborted_up_to(raw.base_offset)
    if raw.is_control_batch and fetched._contains_abort_marker(raw):
        fetched._aborted_producers.discard(raw.producer_id)
    return bool(raw.is_transactional and raw.producer_id in fetched._aborted_producers)


class _Columns:
    def __init__(self) -> None:
        self.offsets: list[npt.NDArray[np.int64]] = []
        self.append_ms: list[npt.NDArray[np.int64]] = []
        self.keys: list[bytes | None] = []
        self.values: list[bytes | None] = []
        self.headers: list[Headers] = []
        self.unreadable: list[Unreadable] = []

    def extend(self, raw: Any, log: FetchedRecords, position: int) -> None:
        """Add the records of one broker batch from `position` on."""
        try:
            records = list(raw)
        except Exception:  # any decoder error of any codec: the batch is poison, not the worker
            records = self._salvaged(raw, log.batch_bytes)
        if records and records[0].offset < position:
            records = [record for record in records if record.offset >= position]
        if not records:
            return
        self.offsets.append(_offsets(records))
        self.append_ms.append(_times(raw, records))
        self.keys += [record.key for record in records]
        self.values += [record.value for record in records]
        self.headers += [record.headers for record in records]

    def _salvaged(self, raw: Any, data: bytes) -> list[Record]:
        records, problem = salvage(data)
        if problem is not None:
            first = records[-1].offset + 1 if records else raw.base_offset
            self.unreadable.append(Unreadable(first, raw.next_offset, raw.max_timestamp, data, problem))
        return records

    def batch(self, topic: str, partition: int, begin: int, end: int) -> Batch:
        return Batch(
            topic,
            partition,
            begin,
            end,
            np.concatenate([_NONE, *self.offsets]),
            np.concatenate([_NONE, *self.append_ms]),
            self.keys,
            self.values,
            self.headers,
            tuple(self.unreadable),
        )


def _offsets(records: list[Any]) -> npt.NDArray[np.int64]:
    first, last = records[0].offset, records[-1].offset
    if last - first == len(records) - 1:  # offsets only rise: no gap, as in any log that is not compacted
        return np.arange(first, last + 1, dtype=np.int64)
    return np.array([record.offset for record in records], dtype=np.int64)


def _times(raw: Any, records: list[Any]) -> npt.NDArray[np.int64]:
    if raw.timestamp_type == _LOG_APPEND_TIME:  # one time for the whole batch
        return np.full(len(records), records[0].timestamp, dtype=np.int64)
    return np.array([record.timestamp for record in records], dtype=np.int64)
