"""Reads a record batch (Kafka's format v2) that the client's decoder refuses, as far as its bytes allow.

A header name that is no UTF-8, which brokers accept, spoils nothing here; at a record that makes no sense, what came
before it is kept, and bytes after the last record are nobody's. Format: https://kafka.apache.org/documentation/#recordbatch
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from aiokafka import codec

from topics.records import Headers

#: base offset, length, leader epoch, magic, crc, attributes, last offset delta, first and max timestamp, producer id,
#: producer epoch, base sequence, record count
_BATCH = struct.Struct(">qiibIhiqqqhii")
_CODEC_MASK = 0x07
_LOG_APPEND_TIME = 0x08
_DECODERS = {
    0: bytes,
    1: codec.gzip_decode,
    2: codec.snappy_decode,
    3: codec.lz4_decode,
    4: codec.zstd_decode,
}


@dataclass(frozen=True, slots=True)
class Record:
    """One record, named as aiokafka names it."""

    offset: int
    timestamp: int
    key: bytes | None
    value: bytes | None
    headers: Headers


def salvage(data: bytes) -> tuple[list[Record], str | None]:
    """The records that can be read of one whole batch, and what is wrong with the rest, if there is one. Total."""
    base, *_, attributes, _, first_ms, max_ms, _, _, _, count = _BATCH.unpack_from(data)
    records: list[Record] = []
    try:
        payload = _DECODERS[attributes & _CODEC_MASK](data[_BATCH.size :])
        reader = _Reader(payload)
        for _ in range(count):
            offset, delta_ms, key, value, headers = reader.record()
            append_ms = max_ms if attributes & _LOG_APPEND_TIME else first_ms + delta_ms
            records.append(Record(base + offset, append_ms, key, value, headers))
    except Exception as error:  # codecs raise what they like
        return records, f"{type(error).__name__}: {error}"
    return records, None


class _Reader:
    """A cursor over a batch's decompressed bytes. Raises ValueError and IndexError past what makes sense."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def record(self) -> tuple[int, int, bytes | None, bytes | None, Headers]:
        """Offset and time as deltas, key, value and headers of the next record."""
        end = self._varint() + self._at
        self._at += 1  # attributes, unused
        delta_ms, offset = self._varint(), self._varint()
        key, value = self._bytes(), self._bytes()
        count = self._varint()
        headers = [(_name(self._bytes()), self._bytes()) for _ in range(count)]
        if count < 0 or self._at != end:
            raise ValueError(f"a record ends at byte {self._at} instead of {end}")
        return offset, delta_ms, key, value, headers

    def _bytes(self) -> bytes | None:
        size = self._varint()
        if size < 0:
            return None
        start = self._at
        self._at += size
        if self._at > len(self._data):
            raise ValueError(f"{size} bytes at byte {start} pass the end")
        return self._data[start : self._at]

    def _varint(self) -> int:
        """A zigzag varint of up to ten bytes."""
        value = shift = 0
        while True:
            byte = self._data[self._at]
            self._at += 1
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                return (value >> 1) ^ -(value & 1)
            shift += 7
            if shift > 63:
                raise ValueError(f"a number at byte {self._at} has no end")


def _name(raw: bytes | None) -> str:
    """A header's name; bytes that are no UTF-8 are written as escapes, so that they can be told apart."""
    return (raw or b"").decode("utf-8", "backslashreplace")
