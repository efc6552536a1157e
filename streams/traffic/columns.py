"""From a batch of records to columns of accepted rows: the part of the fold that touches every event.

A value costs one strict decode and one look at each field; everything else works on whole columns. Strings that repeat
(path, method, address) become codes of a dictionary that lives as long as one flush.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from operator import attrgetter
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import xxhash

from topics import rows as row_schemas
from topics.records import Batch, header
from topics.traffic import Malformed, TrafficEvent, bad_ip, decode, decode_strictly, valid_ip

I32 = npt.NDArray[np.int32]
I64 = npt.NDArray[np.int64]


class Codes(dict[Any, int]):
    """Numbers values from 0 in the order of their first appearance."""

    def __missing__(self, value: Any) -> int:
        code = self[value] = len(self)
        return code

    def of(self, values: Iterable[Any]) -> I32:
        """The code of each value."""
        return np.fromiter(map(self.__getitem__, values), dtype=np.int32)


@dataclass(slots=True)
class Decoded:
    """The events of a batch, `rows` telling each one's record; `malformed` pairs record and reason."""

    events: list[TrafficEvent]
    rows: I64
    malformed: list[tuple[int, Malformed]]


_address = attrgetter("client_ip")


def decode_batch(values: Sequence[bytes | None]) -> Decoded:
    """Decode all values; one bad value costs a second look at its batch, not the batch."""
    try:
        events = [decode_strictly(value) for value in values]  # type: ignore[arg-type]
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, TypeError):
        return _decode_one_by_one(values)
    rows = np.arange(len(events))
    bad = _bad_addresses(events)
    if not bad:
        return Decoded(events, rows, [])
    malformed = [(i, bad_ip(event)) for i, event in enumerate(events) if event.client_ip in bad]
    good = np.array([event.client_ip not in bad for event in events])
    return Decoded([event for event in events if event.client_ip not in bad], rows[good], malformed)


#: Addresses known to be valid: most of a batch's were in the one before.
_known_addresses: set[str] = set()
_KNOWN_MAX = 100_000


def _bad_addresses(events: list[TrafficEvent]) -> set[str]:
    """The addresses among `events` that are none."""
    if _known_addresses.issuperset(map(_address, events)):
        return set()
    fresh = set(map(_address, events)) - _known_addresses
    bad = {text for text in fresh if not valid_ip(text)}
    if len(_known_addresses) > _KNOWN_MAX:
        _known_addresses.clear()
    _known_addresses.update(fresh - bad)
    return bad


def _decode_one_by_one(values: Sequence[bytes | None]) -> Decoded:
    results = [decode(value) for value in values]
    malformed = [(i, result) for i, result in enumerate(results) if isinstance(result, Malformed)]
    events = [result for result in results if isinstance(result, TrafficEvent)]
    rows = [i for i, result in enumerate(results) if isinstance(result, TrafficEvent)]
    return Decoded(events, np.array(rows, dtype=np.int64), malformed)


def text_buffers(strings: Any) -> tuple[npt.NDArray[np.uint8], I32]:
    """The bytes and offsets of a pyarrow string array without nulls."""
    _, offsets, data = strings.buffers()
    ends = np.frombuffer(offsets, dtype=np.int32)[strings.offset : strings.offset + len(strings) + 1]
    return np.frombuffer(data if data is not None else b"", dtype=np.uint8), ends


def digests_of(ids: Sequence[str]) -> npt.NDArray[np.uint8]:
    """The xxh3 128-bit digest of each id, uint8[n, 16]: stable between versions and machines."""
    digest = xxhash.xxh3_128_digest
    packed = b"".join([digest(text.encode()) for text in ids])
    return np.frombuffer(packed, dtype=np.uint8).reshape(len(ids), 16)


@dataclass(slots=True)
class Rows:
    """Accepted rows of one batch, as columns; codes refer to the flush's `Dictionaries`."""

    event_id: Any
    timestamp_ms: I64
    method: I32
    path: I32
    status: I64
    ip: I32
    response_time_ms: Any
    bytes: Any
    agent: I32 | None
    labels: list[dict[str, str] | None] | None
    group: I32 | None
    producer: I32 | None
    offset: I64
    append_ms: I64

    def __len__(self) -> int:
        return len(self.timestamp_ms)


class Dictionaries:
    """What the codes of one flush's rows stand for. `group` are the configured dimensions (`Key`)."""

    def __init__(self) -> None:
        self.method, self.path, self.ip = Codes(), Codes(), Codes()
        self.agent, self.group, self.producer = Codes(), Codes(), Codes()

    @cached_property
    def addresses(self) -> Any:
        """The distinct addresses as a pyarrow array, in the order of their codes. Ask for it when all rows are in."""
        return pa.array(list(self.ip), pa.string())

    def rows(self, batch: Batch, events: list[TrafficEvent], at: I64, ids: Any, dimensions: tuple[str, ...]) -> Rows:
        """The columns of accepted `events`, whose records are `at` in the batch and whose ids are `ids` (pyarrow)."""
        labels = [event.dimensions for event in events]
        agents = [event.user_agent for event in events]
        headers = [batch.headers[i] for i in at.tolist()] if any(batch.headers) else []
        return Rows(
            event_id=ids,
            timestamp_ms=np.array([event.timestamp_ms for event in events], dtype=np.int64),
            method=self.method.of([event.method for event in events]),
            path=self.path.of([event.path for event in events]),
            status=np.array([event.status for event in events], dtype=np.int64),
            ip=self.ip.of(map(_address, events)),
            response_time_ms=pa.array([event.response_time_ms for event in events], pa.float64()),
            bytes=pa.array([event.bytes for event in events], pa.uint64()),
            agent=self.agent.of(agents) if agents.count(None) < len(agents) else None,
            labels=labels if any(labels) else None,
            group=self.group.of([_group(event, dimensions) for event in events]) if dimensions else None,
            producer=self.producer.of([_producer(h) for h in headers]) if any(headers) else None,
            offset=batch.offsets[at],
            append_ms=batch.append_ms[at],
        )


def _group(event: TrafficEvent, dimensions: tuple[str, ...]) -> tuple[str, ...]:
    labels = event.dimensions or {}
    return tuple(text for name in dimensions for text in (name, labels.get(name, "")))


def _producer(headers: Any) -> str:
    return (header(headers, "producer") or b"").decode("utf-8", "replace")[:128]


def event_table(parts: list[Rows], names: Dictionaries, partition: int) -> Any:
    """The rows as a Table for `traffic_events_rows`."""
    count = sum(map(len, parts))
    ones = np.zeros(count, dtype=np.int32)
    columns = {
        "event_id": pa.chunked_array([part.event_id for part in parts], pa.string()),
        "timestamp_ms": joined([part.timestamp_ms for part in parts]),
        "method": _dictionary(joined([part.method for part in parts]), names.method),
        "path": _dictionary(joined([part.path for part in parts]), names.path),
        "status": joined([part.status for part in parts]).astype(np.uint16),
        "client_ip": pa.DictionaryArray.from_arrays(pa.array(joined([part.ip for part in parts])), names.addresses),
        "response_time_ms": pa.chunked_array([part.response_time_ms for part in parts]),
        "bytes": pa.chunked_array([part.bytes for part in parts]),
        "user_agent": _optional(parts, "agent", names.agent),
        "dimensions": _labels(parts),
        "producer": _optional(parts, "producer", names.producer, default=""),
        "source_partition": (ones + partition).astype(np.uint16),
        "source_offset": joined([part.offset for part in parts]).astype(np.uint64),
        "append_ms": joined([part.append_ms for part in parts]),
    }
    schema = row_schemas.TRAFFIC_EVENTS
    return pa.table([columns[name] for name in schema.names], schema=schema)


def joined(arrays: Sequence[npt.NDArray[Any]]) -> npt.NDArray[Any]:
    """One array of several."""
    return arrays[0] if len(arrays) == 1 else np.concatenate(arrays)


def _dictionary(codes: I32, names: Codes) -> Any:
    return pa.DictionaryArray.from_arrays(pa.array(codes), pa.array(list(names), pa.string()))


def _optional(parts: list[Rows], field: str, names: Codes, default: str | None = None) -> Any:
    """A dictionary column of a field that whole batches may lack; a default of None stands for NULL."""
    absent = names[default]
    codes = joined(
        [getattr(p, field) if getattr(p, field) is not None else np.full(len(p), absent, np.int32) for p in parts]
    )
    # NULL is an index without a value: a dictionary that holds a null cannot be unified with another.
    indices = pa.array(codes, mask=codes == absent if default is None else None)
    return pa.DictionaryArray.from_arrays(indices, pa.array([name or "" for name in names], pa.string()))


def _labels(parts: list[Rows]) -> Any:
    kind = row_schemas.TRAFFIC_EVENTS.field("dimensions").type
    if all(part.labels is None for part in parts):
        count = sum(map(len, parts))
        offsets = pa.array(np.zeros(count + 1, dtype=np.int32))
        return pa.MapArray.from_arrays(offsets, pa.array([], pa.string()), pa.array([], pa.string()))
    maps: list[list[tuple[str, str]]] = []
    for part in parts:
        labels = part.labels if part.labels is not None else [None] * len(part)
        maps += [list(label.items()) if label else [] for label in labels]
    return pa.array(maps, kind)
