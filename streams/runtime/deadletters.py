"""Dead letters: records that can never succeed, kept whole in a topic of their own and listed in ClickHouse.

A record whose dead letter would not fit the topic goes to the object store, and the dead letter holds a reference to it
(header `object`). The object's key comes from the record's coordinates, so a replay writes the same one again.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pyarrow as pa

from streams.runtime.fold import ObjectStore
from topics import rows as row_schemas
from topics.records import DeadLetter, Emit, Headers, header

_ERROR_BYTES = 2_000
_HEADER_BYTES = 32_768


class DeadLetters:
    """Turns a fold's dead letters into records of `topic` and rows of `deadletters_rows`."""

    def __init__(self, stream: str, topic: str, max_bytes: int, objects: ObjectStore | None) -> None:
        self._stream = stream
        self._topic = topic
        self._max_bytes = max_bytes
        self._objects = objects

    async def emits(self, dead: Sequence[DeadLetter]) -> list[Emit]:
        """The records to send, oversized values put into the object store first."""
        return [await self._emit(letter) for letter in dead]

    async def _emit(self, letter: DeadLetter) -> Emit:
        headers = _headers(letter)
        if not self._oversized(letter):
            return Emit(self._topic, letter.key, letter.value, headers)
        assert self._objects is not None
        name = _object_key(letter)
        await self._objects.put(name, letter.value or b"")
        return Emit(self._topic, letter.key, None, [*headers, ("object", name.encode())])

    def _oversized(self, letter: DeadLetter) -> bool:
        size = len(letter.value or b"") + sum(len(k) + len(v) for k, v in _headers(letter)) + len(letter.key or b"")
        return size > self._max_bytes and self._objects is not None

    def rows(self, dead: Sequence[DeadLetter]) -> Any:
        """A Table for `deadletters_rows`, or None."""
        if not dead:
            return None
        return pa.Table.from_pylist([self._row(letter) for letter in dead], schema=row_schemas.DEADLETTERS)

    def _row(self, letter: DeadLetter) -> dict[str, Any]:
        return {
            "stream": self._stream,
            "source_topic": letter.topic,
            "source_partition": letter.partition,
            "source_offset": letter.offset,
            "append_ms": letter.append_ms,
            "reason": letter.reason,
            "error": letter.error[:_ERROR_BYTES],
            "producer": _text(header(letter.headers, "producer")),
            "size_bytes": len(letter.value or b""),
            "object_key": _object_key(letter) if self._oversized(letter) else "",
        }


def _object_key(letter: DeadLetter) -> str:
    return f"deadletters/{letter.topic}/{letter.partition}/{letter.offset:020d}"


def _headers(letter: DeadLetter) -> list[tuple[str, bytes]]:
    ours: list[tuple[str, bytes]] = [
        ("reason", letter.reason.encode()),
        ("error", letter.error[:_ERROR_BYTES].encode("utf-8", "replace")),
        ("source_topic", letter.topic.encode()),
        ("source_partition", str(letter.partition).encode()),
        ("source_offset", str(letter.offset).encode()),
        ("attempts", b"1"),
    ]
    return ours + _kept(letter.headers, {name for name, _ in ours})


def _kept(headers: Headers, taken: set[str]) -> list[tuple[str, bytes]]:
    """The record's own headers, up to a limit; names that dead letters use themselves are marked."""
    kept, room = [], _HEADER_BYTES
    for name, value in headers:
        room -= len(name) + len(value or b"")
        if room < 0:
            break
        kept.append((f"original_{name}" if name in taken else name, value or b""))
    return kept


def _text(value: bytes | None) -> str:
    return (value or b"").decode("utf-8", "replace")[:128]
