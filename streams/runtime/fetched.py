"""From the bytes of one fetch to a `Batch`: what a reader may see of them, and what no reader can decode kept whole.

aiokafka checks each broker batch and unpacks its head; its records are split by a kernel, without an object for each. Of a
batch that makes no sense from some record on, what comes before it is kept.
"""

from __future__ import annotations

import struct
import time
from collections.abc import Callable
from typing import Any

import cramjam
import numpy as np
import numpy.typing as npt
from aiokafka import codec
from aiokafka.consumer import fetcher
from aiokafka.consumer.fetcher import PartitionRecords
from aiokafka.errors import CorruptRecordException
from aiokafka.record.memory_records import MemoryRecords

from topics import native
from topics.records import Batch, Unreadable

_LENGTH = struct.Struct(">i")
_LENGTH_AT = 8
_OVERHEAD_BYTES = 12
#: base offset, length, leader epoch, magic, crc, attributes, last offset delta, first and max timestamp, producer id,
#: producer epoch, base sequence, record count (https://kafka.apache.org/documentation/#recordbatch)
_HEAD = struct.Struct(">qiibIhiqqqhii")
_CODEC_MASK = 0x07
_LOG_APPEND_TIME = 0x08
#: A batch that becomes larger is poison: a megabyte of zstd can hold gigabytes. A fetch ends with the batch that makes it
#: as large, and what follows is fetched again.
UNPACKED_BYTES_MAX = 32 << 20


def _unpacker(decompress_into: Callable[[Any, Any], int]) -> Callable[[bytes], Any]:
    def unpack(data: bytes) -> npt.NDArray[np.uint8]:
        """Into room for what is usual, then for all that is allowed; memory that nothing is written to costs nothing."""
        usual = min(max(8 * len(data), 1 << 16), UNPACKED_BYTES_MAX)
        try:
            return _unpacked(data, usual)
        except cramjam.DecompressionError:
            return _unpacked(data, UNPACKED_BYTES_MAX)

    def _unpacked(data: bytes, room: int) -> npt.NDArray[np.uint8]:
        into = np.empty(room, dtype=np.uint8)
        return into[: decompress_into(data, into)]

    return unpack


#: Snappy needs no bound: it makes at most 21 bytes of one.
_DECODERS: dict[int, Callable[[bytes], Any]] = {
    0: bytes,
    1: _unpacker(cramjam.gzip.decompress_into),
    2: codec.snappy_decode,
    3: _unpacker(cramjam.lz4.decompress_into),
    4: _unpacker(cramjam.zstd.decompress_into),
}


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
    # An iterator that nobody runs, it refers back to what it iterates: the bytes of the fetch would wait for a collection.
    fetched._records_iterator = None
    fetched_s = time.monotonic()
    begin = fetched.next_fetch_offset
    columns = _Columns()
    log: FetchedRecords = fetched._records
    while log.has_next():
        raw = log.next_batch()
        if not raw.validate_crc():
            raise CorruptRecordException(f"Invalid CRC: {topic}[{partition}] at {raw.base_offset}")
        if not (_aborted(fetched, raw) or raw.is_control_batch):
            columns.extend(raw, log.batch_bytes, fetched.next_fetch_offset)
        fetched.next_fetch_offset = raw.next_offset
        if columns.size >= UNPACKED_BYTES_MAX:
            break
    return columns.batch(topic, partition, begin, fetched.next_fetch_offset, fetched_s)


def _aborted(fetched: PartitionRecords, raw: Any) -> bool:
    if raw.producer_id is None:
        return False
    fetched._consume_aborted_up_to(raw.base_offset)
    if raw.is_control_batch and fetched._contains_abort_marker(raw):
        fetched._aborted_producers.discard(raw.producer_id)
    return bool(raw.is_transactional and raw.producer_id in fetched._aborted_producers)


class _Columns:
    """The records of a fetch's batches, gathered; `size` is in bytes, unpacked."""

    def __init__(self) -> None:
        self._payloads: list[Any] = []
        self.size = 0
        self._columns: list[npt.NDArray[np.int64]] = []
        self._unreadable: list[Unreadable] = []

    def extend(self, raw: Any, data: bytes, position: int) -> None:
        """Add the records of one broker batch, whole in `data`, from `position` on."""
        base_offset, *_, attributes, _, first_ms, max_ms, _, _, _, count = _HEAD.unpack_from(data)
        try:
            payload = _DECODERS[attributes & _CODEC_MASK](data[_HEAD.size :])
        except Exception as error:  # codecs raise what they like: the batch is poison, not the worker
            self._bury(base_offset, raw, data, f"{type(error).__name__}: {error}")
            return
        view = np.frombuffer(payload, dtype=np.uint8)
        columns, whole = native.split_records(view, count, self.size, base_offset, raw.next_offset, first_ms)
        if not whole:
            read = columns.shape[1]
            # Of the batch's own offsets also where the last of them was read too early.
            first = min(int(columns[native.OFFSET, -1]) + 1, raw.next_offset - 1) if read else base_offset
            what = f"record {read + 1} of {count} does not fit the batch's {len(payload)} bytes or its offsets"
            self._bury(first, raw, data, what)
        if attributes & _LOG_APPEND_TIME:  # one time for the whole batch
            columns[native.TIME] = max_ms
        if columns.shape[1] and columns[native.OFFSET, 0] < position:
            columns = columns[:, columns[native.OFFSET] >= position]
        if columns.shape[1]:
            self._payloads.append(payload)
            self.size += len(payload)
            self._columns.append(columns)

    def _bury(self, first_offset: int, raw: Any, data: bytes, error: str) -> None:
        self._unreadable.append(Unreadable(first_offset, raw.next_offset, raw.max_timestamp, data, error))

    def batch(self, topic: str, partition: int, begin: int, end: int, fetched_s: float) -> Batch:
        """All that was added."""
        columns = self._columns or [np.empty((8, 0), dtype=np.int64)]
        data = self._payloads[0] if len(self._payloads) == 1 else b"".join(self._payloads)
        return Batch(
            topic,
            partition,
            begin,
            end,
            np.frombuffer(data, dtype=np.uint8),
            np.ascontiguousarray(columns[0] if len(columns) == 1 else np.concatenate(columns, axis=1)),
            tuple(self._unreadable),
            fetched_s,
        )
