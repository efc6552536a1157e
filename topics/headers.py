"""Record headers as Kafka writes them (format v2): a count, then names and values with their lengths before them.

Format: https://kafka.apache.org/documentation/#recordbatch
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

Headers = Sequence[tuple[str, bytes | None]]


def header(headers: Headers, name: str) -> bytes | None:
    """The first value of header `name`, or None."""
    for key, value in headers:
        if key == name:
            return value
    return None


def headers_nbytes(headers: Headers) -> int:
    """Bytes of names and values."""
    return sum(len(name.encode()) + len(value or b"") for name, value in headers)


def read_headers(raw: bytes) -> Headers:
    """The headers of one record, which a kernel has seen to be whole. No bytes are no headers."""
    if not raw:
        return ()
    count, at = _varint(raw, 0)
    found: list[tuple[str, bytes | None]] = []
    for _ in range(count):
        name, at = _bytes(raw, at)
        value, at = _bytes(raw, at)
        found.append((_name(name or b""), value))
    return tuple(found)


def write_headers(headers: Headers) -> bytes:
    """The inverse of `read_headers`."""
    if not headers:
        return b""
    out = bytearray()
    _write_varint(out, len(headers))
    for name, value in headers:
        raw = name.encode()
        _write_varint(out, len(raw))
        out += raw
        _write_varint(out, -1 if value is None else len(value))
        out += value or b""
    return bytes(out)


@lru_cache(maxsize=1_024)
def _name(raw: bytes) -> str:
    """A header's name. One that is no UTF-8, which brokers accept, is written with escapes, so that two can be told apart."""
    return raw.decode("utf-8", "backslashreplace")


def _bytes(raw: bytes, at: int) -> tuple[bytes | None, int]:
    # Most lengths are a single byte.
    size = raw[at]
    if size < 0x80 and not size & 1:
        at += 1
        return raw[at : at + (size >> 1)], at + (size >> 1)
    size, at = _varint(raw, at)
    return (None, at) if size < 0 else (raw[at : at + size], at + size)


def _varint(raw: bytes, at: int) -> tuple[int, int]:
    """A zigzag varint and where it ends."""
    value = shift = 0
    while True:
        byte = raw[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return (value >> 1) ^ -(value & 1), at
        shift += 7


def _write_varint(out: bytearray, number: int) -> None:
    number = number << 1 ^ number >> 63
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
