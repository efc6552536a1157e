"""Kafka record batches made by hand, byte by byte: what no client would send, and what only a broker writes."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass

from aiokafka import codec as codecs
from aiokafka.record.util import calc_crc32c

#: Codec names, their numbers in a batch, and what compresses.
ENCODERS = {
    "none": (0, bytes),
    "gzip": (1, codecs.gzip_encode),
    "snappy": (2, codecs.snappy_encode),
    "lz4": (3, codecs.lz4_encode),
    "zstd": (4, codecs.zstd_encode),
}
CODECS = tuple(ENCODERS)
_LOG_APPEND_TIME, _TRANSACTIONAL, _CONTROL = 0x08, 0x10, 0x20


@dataclass(frozen=True)
class Raw:
    """One record; header names may be bytes that are no text. `delta` is its offset after the batch's first, by default
    its place; `count` is written in place of the number of headers."""

    key: bytes | None
    value: bytes | None
    headers: Sequence[tuple[str | bytes, bytes | None]] = ()
    delta: int | None = None
    count: bytes | None = None


def record_batch(
    records: Sequence[Raw],
    *,
    codec: str = "none",
    base_offset: int = 0,
    append_ms: int | None = None,
    producer_id: int = -1,
    transactional: bool = False,
    control: bool = False,
    payload_tail: bytes = b"",
    cut_bytes: int = 0,
    spoil: bool = False,
) -> bytes:
    """A batch with a right checksum around what may be wrong: `payload_tail` follows the last record, which lacks its
    last `cut_bytes`; `spoil` breaks the compressed payload in its middle. Without `append_ms`, as a producer sends it."""
    number, encode = ENCODERS[codec]
    plain = plain_records(records) + payload_tail
    payload = bytes(encode(plain[: len(plain) - cut_bytes]))
    if spoil:
        middle = len(payload) // 2
        payload = payload[:middle] + bytes(b ^ 0xFF for b in payload[middle : middle + 8]) + payload[middle + 8 :]
    return sealed(
        payload,
        len(records),
        number | _TRANSACTIONAL * transactional | _CONTROL * control,
        base_offset=base_offset,
        append_ms=append_ms,
        producer_id=producer_id,
    )


def sealed(
    payload: bytes,
    count: int,
    attributes: int,
    *,
    base_offset: int = 0,
    append_ms: int | None = None,
    producer_id: int = -1,
) -> bytes:
    """Any payload as a batch of `count` records, with a right length and checksum; `attributes` begin with the codec."""
    if append_ms is not None:
        attributes |= _LOG_APPEND_TIME
    at, epoch = append_ms or 0, 0 if producer_id >= 0 else -1
    body = struct.pack(">hiqqqhii", attributes, count - 1, at, at, producer_id, epoch, -1, count) + payload
    return struct.pack(">qiibI", base_offset, len(body) + 9, 0, 2, calc_crc32c(body)) + body


def abort_marker(base_offset: int, producer_id: int) -> bytes:
    """The control record that ends an aborted transaction."""
    marker = Raw(struct.pack(">hh", 0, 0), struct.pack(">hi", 0, 0))
    return record_batch([marker], base_offset=base_offset, producer_id=producer_id, transactional=True, control=True)


def plain_records(records: Sequence[Raw]) -> bytes:
    """The records end to end, as they are before compression."""
    return b"".join(_record(i, record) for i, record in enumerate(records))


def _record(offset: int, record: Raw) -> bytes:
    delta = offset if record.delta is None else record.delta
    body = b"\x00" + _varint(0) + _varint(delta) + _bytes(record.key) + _bytes(record.value)
    body += _varint(len(record.headers)) if record.count is None else record.count
    for name, value in record.headers:
        body += _bytes(name if isinstance(name, bytes) else name.encode()) + _bytes(value)
    return _varint(len(body)) + body


def _bytes(data: bytes | None) -> bytes:
    return _varint(-1) if data is None else _varint(len(data)) + data


def _varint(number: int) -> bytes:
    number = number << 1 ^ number >> 63
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*out, number])
