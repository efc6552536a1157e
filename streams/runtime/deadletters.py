"""Dead letters: records that can never succeed, kept whole in a topic of their own and listed in ClickHouse.

A record whose dead letter would not fit the topic goes to the object store, and the dead letter holds a reference to it
(header `object`). The object's key comes from the record's coordinates, so a replay writes the same one again. Of a key
or headers that would not fit even then, the dead letter says how much was left out. A record that was replayed from a dead
letter and died again counts its attempts on, and names the letter it comes from (header `replay_of`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pyarrow as pa

from streams.runtime.fold import ObjectStore
from topics import rows as row_schemas
from topics.deadletters import OBJECTS, marked, producer_of, read_replay
from topics.headers import Headers, headers_nbytes
from topics.records import DeadLetter, Emit

_ERROR_CHARS = 2_000


class DeadLetters:
    """Turns a fold's dead letters into records of `topic` and rows of `deadletters_rows`."""

    def __init__(self, stream: str, topic: str, max_bytes: int, objects: ObjectStore) -> None:
        self._stream = stream
        self._topic = topic
        self._max_bytes = max_bytes
        self._objects = objects

    async def emits(self, dead: Sequence[DeadLetter]) -> list[Emit]:
        """The records to send, oversized values put into the object store first."""
        return [await self._emit(letter) for letter in dead]

    async def _emit(self, letter: DeadLetter) -> Emit:
        ours, theirs = _ours(letter), marked(letter.headers)
        if not self._oversized(letter):
            return Emit(self._topic, letter.key, letter.value, [*ours, *theirs])
        name = _object_key(letter)
        await self._objects.put(name, letter.value or b"")
        key, kept, left_out = _fitting(letter.key, theirs, self._max_bytes - headers_nbytes(ours))
        return Emit(self._topic, key, None, [*ours, ("object", name.encode()), *left_out, *kept])

    def _oversized(self, letter: DeadLetter) -> bool:
        """Whether the record alone is too large; for what a dead letter adds, the topic has room beside."""
        return letter.nbytes > self._max_bytes

    def rows(self, dead: Sequence[DeadLetter]) -> Any:
        """A Table for `deadletters_rows`, or None."""
        if not dead:
            return None
        columns = {
            "stream": [self._stream] * len(dead),
            "source_topic": [letter.topic for letter in dead],
            "source_partition": [letter.partition for letter in dead],
            "source_offset": [letter.offset for letter in dead],
            "append_ms": [letter.append_ms for letter in dead],
            "reason": [letter.reason for letter in dead],
            "error": [letter.error[:_ERROR_CHARS] for letter in dead],
            "producer": [producer_of(letter.headers) for letter in dead],
            "size_bytes": [len(letter.value or b"") for letter in dead],
            "object_key": [_object_key(letter) if self._oversized(letter) else "" for letter in dead],
        }
        # By columns: a flood of bad records would hold the loop for seconds, were each a dict.
        return pa.table({name: columns[name] for name in row_schemas.DEADLETTERS.names}, row_schemas.DEADLETTERS)


def _object_key(letter: DeadLetter) -> str:
    # With its append time, for a topic that was made anew has the same offsets again.
    return f"{OBJECTS}{letter.topic}/{letter.partition}/{letter.offset:020d}-{letter.append_ms}"


def _ours(letter: DeadLetter) -> list[tuple[str, bytes]]:
    replay = read_replay(letter.headers)
    return [
        ("reason", letter.reason.encode()),
        ("error", letter.error[:_ERROR_CHARS].encode("utf-8", "replace")),
        ("source_topic", letter.topic.encode()),
        ("source_partition", str(letter.partition).encode()),
        ("source_offset", str(letter.offset).encode()),
        ("attempts", str(letter.attempts + (replay.attempts if replay else 0)).encode()),
        *([("replay_of", replay.letter.encode())] if replay else []),
    ]


def _fitting(key: bytes | None, headers: Headers, room: int) -> tuple[bytes | None, Headers, Headers]:
    """The key and as many headers as fit into `room` bytes, and headers that say what does not."""
    left_out: list[tuple[str, bytes]] = []
    if key is not None and len(key) > room // 2:
        left_out.append(("key_bytes_left_out", str(len(key)).encode()))
        key = None
    room -= len(key or b"")
    kept = 0
    while kept < len(headers) and (room := room - headers_nbytes(headers[kept : kept + 1])) >= 0:
        kept += 1
    if kept < len(headers):
        left_out.append(("headers_left_out", str(len(headers) - kept).encode()))
    return key, headers[:kept], left_out
