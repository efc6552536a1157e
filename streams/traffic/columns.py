"""From a batch of records to columns of accepted rows: the part of the fold that touches every event.

A kernel reads the values that are written plainly, as nearly all are, straight into columns; `topics.traffic.decode` has
the last word on every other one, and its event joins the same columns. Strings that repeat (path, method, address) become
codes of a dictionary that lives as long as one flush.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, TypeVar

import msgspec
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute  # at start: pyarrow would import it at the first flush, for a quarter of a second

from topics import native
from topics import rows as row_schemas
from topics import traffic as limits
from topics.native import Texts, Words
from topics.records import Batch
from topics.traffic import Malformed, TrafficEvent, decode, valid_ip

I32 = npt.NDArray[np.int32]
I64 = npt.NDArray[np.int64]
F64 = npt.NDArray[np.float64]
T = TypeVar("T")

_LIMITS = native.EventLimits(
    id_chars=limits.MAX_ID_CHARS,
    short_chars=limits.MAX_SHORT_CHARS,
    path_chars=limits.MAX_PATH_CHARS,
    agent_chars=limits.MAX_AGENT_CHARS,
    dimensions=limits.MAX_DIMENSIONS,
    dimension_chars=limits.MAX_DIMENSION_CHARS,
    timestamp_ms=limits.MAX_TIMESTAMP_MS,
    bytes=limits.MAX_BYTES,
    response_ms=limits.MAX_RESPONSE_MS,
)


@dataclass(slots=True)
class Decoded:
    """The n events of a batch as columns, `rows` telling each one's record; `malformed` pairs record and reason.

    `at` and `size` are int64[6, n] places in `data` of id, method, path, address, agent and dimensions (as JSON);
    `numbers` is int64[3, n]: time, status, bytes (-1 where absent). An absent text has size -1, an absent response
    time is NaN.
    """

    data: npt.NDArray[np.uint8]
    at: I64
    size: I64
    numbers: I64
    response_ms: F64
    rows: I64
    malformed: list[tuple[int, Malformed]]

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def timestamp_ms(self) -> I64:
        """Each event's own time."""
        times: I64 = self.numbers[native.TIMESTAMP]
        return times

    @property
    def ids(self) -> Texts:
        """Each event's id."""
        return self.text(native.ID)

    def text(self, column: int) -> Texts:
        """One of the texts."""
        return Texts(self.data, self.at[column], self.size[column])

    def take(self, rows: npt.NDArray[Any]) -> Decoded:
        """These events, by index or mask."""
        at, size, numbers = (np.ascontiguousarray(columns[:, rows]) for columns in (self.at, self.size, self.numbers))
        return Decoded(self.data, at, size, numbers, self.response_ms[rows], self.rows[rows], self.malformed)


def decode_batch(values: Texts) -> Decoded:
    """Decode all values. Total: each is an event or malformed."""
    read = native.read_events(values, _LIMITS)
    every = np.arange(len(values))
    decoded = Decoded(values.data, read.at, read.size, read.number, read.response_ms, every, [])
    if not read.look.any():
        return decoded
    events: list[tuple[int, TrafficEvent]] = []
    for row in np.flatnonzero(read.look).tolist():
        if read.look[row] == native.UNKNOWN_ADDRESS and valid_ip(_text(decoded, native.ADDRESS, row)):
            continue
        result = decode(None if values.size[row] < 0 else values.bytes_of(row))
        if isinstance(result, Malformed):
            decoded.malformed.append((row, result))
        else:
            events.append((row, result))
    _put(decoded, events)
    if not decoded.malformed:
        return decoded
    return decoded.take(np.delete(every, [row for row, _ in decoded.malformed]))


def _text(decoded: Decoded, column: int, row: int) -> str:
    return decoded.text(column).bytes_of(row).decode()


def _put(decoded: Decoded, events: list[tuple[int, TrafficEvent]]) -> None:
    """Write events that were decoded one by one into the columns of their rows, their texts behind the other data."""
    texts = [_texts_of(event) for _, event in events]
    if not texts:
        return
    size = np.array([[-1 if text is None else len(text) for text in row] for row in texts], dtype=np.int64)
    at = np.cumsum(np.maximum(size, 0)).reshape(size.shape) - np.maximum(size, 0) + len(decoded.data)
    more = np.frombuffer(b"".join(text or b"" for row in texts for text in row), dtype=np.uint8)
    rows = [row for row, _ in events]
    decoded.data = np.concatenate([decoded.data, more])
    decoded.at[:, rows], decoded.size[:, rows] = at.T, size.T
    numbers = [(e.timestamp_ms, e.status, -1 if e.bytes is None else e.bytes) for _, e in events]
    decoded.numbers[:, rows] = np.array(numbers, dtype=np.int64).T
    decoded.response_ms[rows] = [np.nan if e.response_time_ms is None else e.response_time_ms for _, e in events]


def _texts_of(event: TrafficEvent) -> tuple[bytes | None, ...]:
    """An event's texts in the order of `Decoded`."""
    agent = None if event.user_agent is None else event.user_agent.encode()
    labels = None if event.dimensions is None else msgspec.json.encode(event.dimensions)
    return (
        event.event_id.encode(),
        event.method.encode(),
        event.path.encode(),
        event.client_ip.encode(),
        agent,
        labels,
    )


@dataclass(slots=True)
class Rows:
    """Accepted rows of one batch, as columns; codes refer to the flush's `Dictionaries`, -1 standing for absent."""

    ids: npt.NDArray[np.uint8]
    id_size: I64
    numbers: I64
    response_ms: F64
    method: I32
    path: I32
    ip: I32
    agent: I32
    labels: I32
    producer: I32
    offset: I64
    append_ms: I64

    def __len__(self) -> int:
        return len(self.offset)

    @property
    def timestamp_ms(self) -> I64:
        """Each event's own time."""
        times: I64 = self.numbers[native.TIMESTAMP]
        return times


class Dictionaries:
    """What the codes of one flush's rows stand for. Labels are the events' dimensions and producers what their headers
    say, both as they were written."""

    def __init__(self) -> None:
        self.method, self.path, self.ip = Words(), Words(), Words()
        self.agent, self.labels, self.producer = Words(), Words(), Words()

    @property
    def nbytes(self) -> int:
        """Bytes of all that was said."""
        return sum(words.nbytes for words in self._all())

    def _all(self) -> tuple[Words, ...]:
        return self.method, self.path, self.ip, self.agent, self.labels, self.producer

    def rows(self, batch: Batch, events: Decoded) -> Rows:
        """The columns of accepted `events` of `batch`."""
        at = events.rows
        return Rows(
            ids=native.gathered(events.ids),
            id_size=events.size[native.ID].copy(),  # a view would keep all of the sizes
            numbers=events.numbers,
            response_ms=events.response_ms,
            method=self.method.codes(events.text(native.METHOD)),
            path=self.path.codes(events.text(native.PATH)),
            ip=self.ip.codes(events.text(native.ADDRESS)),
            agent=self.agent.codes(events.text(native.AGENT)),
            labels=self.labels.codes(events.text(native.DIMENSIONS)),
            producer=self.producer.codes(native.header_of(batch.raw_headers.take(at), b"producer")),
            offset=batch.offsets[at],
            append_ms=batch.append_ms[at],
        )

    def labels_of(self) -> list[dict[str, str]]:
        """The dimensions behind each code."""
        return _each(self.labels, lambda raw: msgspec.json.decode(raw, type=dict[str, str]))


def _each(words: Words, read: Callable[[bytes], T]) -> list[T]:
    """What each word says."""
    offsets, data = words.buffers()
    raw, bounds = data.tobytes(), offsets.tolist()
    return [read(raw[start:stop]) for start, stop in pairwise(bounds)]


def _producer(raw: bytes) -> str:
    return raw.decode("utf-8", "replace")[:128]


def event_table(parts: Sequence[Rows], names: Dictionaries, partition: int) -> Any:
    """The rows as a Table for `traffic_events_rows`."""
    numbers, ms = joined([part.numbers for part in parts]), joined([part.response_ms for part in parts])
    count = numbers.shape[1]
    size = numbers[native.BYTES]
    columns = {
        "event_id": _strings(joined([part.ids for part in parts]), joined([part.id_size for part in parts])),
        "timestamp_ms": numbers[native.TIMESTAMP],
        "method": _coded(parts, "method", names.method.array()),
        "path": _coded(parts, "path", names.path.array()),
        "status": numbers[native.STATUS].astype(np.uint16),
        "client_ip": _coded(parts, "ip", names.ip.array()),
        "response_time_ms": pa.array(ms, mask=np.isnan(ms)),
        "bytes": pa.array(size.astype(np.uint64), mask=size < 0),
        "user_agent": _coded(parts, "agent", names.agent.array()),
        "dimensions": _labels(joined([part.labels for part in parts]), names),
        "producer": _producers(parts, names),
        "source_partition": np.full(count, partition, dtype=np.uint16),
        "source_offset": joined([part.offset for part in parts]).astype(np.uint64),
        "append_ms": joined([part.append_ms for part in parts]),
    }
    schema = row_schemas.TRAFFIC_EVENTS
    return pa.table([columns[name] for name in schema.names], schema=schema)


def joined(arrays: Sequence[npt.NDArray[Any]]) -> npt.NDArray[Any]:
    """One array of several, along their last axis."""
    return arrays[0] if len(arrays) == 1 else np.concatenate(arrays, axis=-1)


def _strings(data: npt.NDArray[np.uint8], size: I64) -> Any:
    offsets = np.zeros(len(size) + 1, dtype=np.int32)
    np.cumsum(size, out=offsets[1:])
    return pa.StringArray.from_buffers(len(size), pa.py_buffer(offsets), pa.py_buffer(data))


def _coded(parts: Sequence[Rows], field: str, words: Any) -> Any:
    """A dictionary column; NULL is an index without a value."""
    codes = joined([getattr(part, field) for part in parts])
    absent = codes < 0
    return pa.DictionaryArray.from_arrays(pa.array(codes, mask=absent if absent.any() else None), words)


def _producers(parts: Sequence[Rows], names: Dictionaries) -> Any:
    """The producers that headers name; several spellings may stand for one."""
    said = ["", *_each(names.producer, _producer)]
    places = {name: place for place, name in enumerate(dict.fromkeys(said))}
    place_of = np.array([places[name] for name in said], dtype=np.int32)
    codes = joined([part.producer for part in parts])
    return pa.DictionaryArray.from_arrays(place_of[codes + 1], pa.array(list(places), pa.string()))


def _labels(codes: I32, names: Dictionaries) -> Any:
    if not len(names.labels):
        offsets = pa.array(np.zeros(len(codes) + 1, dtype=np.int32))
        return pa.MapArray.from_arrays(offsets, pa.array([], pa.string()), pa.array([], pa.string()))
    kind = row_schemas.TRAFFIC_EVENTS.field("dimensions").type
    distinct = pa.array([[], *(list(labels.items()) for labels in names.labels_of())], kind)
    return distinct.take(pa.array(codes + 1))
