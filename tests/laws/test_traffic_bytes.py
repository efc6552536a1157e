"""Any bytes at all on the topic give a result or a dead letter, never an exception, and each record one of them."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence

import msgspec
import numpy as np
from aiokafka import TopicPartition
from aiokafka.consumer.fetcher import READ_COMMITTED, PartitionRecords
from hypothesis import given, settings
from hypothesis import strategies as st

from streams.runtime.deadletters import DeadLetters
from streams.runtime.fetched import FetchedRecords, decode_fetch
from streams.runtime.fold import Position
from streams.traffic.columns import Decoded, decode_batch
from streams.traffic.core import TrafficRules
from tests.recordbatch import CODECS, ENCODERS, Raw, plain_records, record_batch, sealed
from tests.traffic import DAY_MS, HOUR_MS, Process, Record, World, batch, event, new_fold
from topics import native
from topics.records import Batch, DeadLetter, Flush
from topics.rerouting import REROUTED
from topics.traffic import MAX_PATH_CHARS, Malformed, TrafficEvent, decode

RULES = TrafficRules(partition=0, partitions=2, lateness_h=2, dedup_h=2, early_h=1, dimensions=("zone",))

# -- what may lie on a topic -------------------------------------------------------------------------------------

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
_FIELDS = ["event_id", "timestamp_ms", "method", "path", "status", "client_ip", "response_time_ms", "bytes"]
_FIELDS += ["user_agent", "dimensions"]
_EDGES = [
    0,
    -1,
    DAY_MS,
    DAY_MS + HOUR_MS + 1,
    2**63,
    1e400,
    -0.0,
    "",
    "\x00",
    "\ud800",
    "é" * MAX_PATH_CHARS,
    "::1",
    {},
]


@st.composite
def _almost_events(draw: st.DrawFn) -> bytes:
    """An event with a few fields that are anything."""
    fields = json.loads(event(f"id-{draw(st.integers(0, 9))}"))
    for name in draw(st.lists(st.sampled_from(_FIELDS), max_size=3)):
        fields[name] = draw(st.sampled_from(_EDGES) | json_values)
    return json.dumps(fields).encode()


@st.composite
def _mutilated(draw: st.DrawFn) -> bytes:
    """An event of which some bytes are others, or missing."""
    value = bytearray(event("id-1", path="/ünï", user_agent='"\\\n', dimensions={"zone": "eu"}))
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(value) - 1))
        value[at : at + draw(st.integers(0, 3))] = draw(st.binary(max_size=3))
    return bytes(value)


_blanks = st.sampled_from(["", "", "", " ", "\n\t", "\r "])
# Up to 15 digits are exact, and where more are needed.
_DECIMALS = ["123456789012.345", "1234567890123.456", "12.3456789012345", "0.000000000000001", "9007199254740993"]
_spellings: dict[str, list[str]] = {
    "event_id": [
        '"a"',
        '"é"',
        '"' + "a" * 128 + '"',
        '"' + "é" * 129 + '"',
        '"\\u0061"',
        '""',
        '"a\x7f"',
        '"\x1f"',
        "1",
    ],
    "timestamp_ms": [str(DAY_MS), "0", "00", "-1", f"{DAY_MS}.0", "1e12", "999999999999999", "9999999999999999", '"1"'],
    "method": ['"GET"', '"M-SEARCH"', '"' + "M" * 65 + '"', '""', "null"],
    "path": ['"/"', '"/v1/docs:batchGet"', '"/ünï/日本/🙂"', '"/\\/"', '"' + "p" * MAX_PATH_CHARS + '"', '"/\ud800"'],
    "status": ["200", "099", "99", "600", "599", "2e2", "200.0", "true"],
    "client_ip": [
        '"192.0.2.1"',
        '"255.255.255.255"',
        '"1.2.3"',
        '"1.2.3.4.5"',
        '"01.2.3.4"',
        '"256.1.1.1"',
        '"1.2.3.4 "',
    ],
    "response_time_ms": [
        "0",
        "0.0",
        "12.5",
        "0.1",
        "1.",
        ".5",
        "01.5",
        "1e3",
        "-0.0",
        "86400000.0",
        "86400000.001",
        "null",
        *_DECIMALS,
    ],
    "bytes": ["0", "1125899906842624", "1125899906842625", "-5", "null", "1.0"],
    "user_agent": ['"curl/8"', '""', "null", '"' + "é" * 1_024 + '"', '"' + "a" * 1_025 + '"', '"a\\"b"'],
    "dimensions": ["{}", '{ "zone" : "eu" }', '{"a":"1","a":"2"}', '{"":"x"}', '{"a":1}', '{"a":"b",}', "null", "[]"]
    + ["{" + ",".join(f'"{i}":""' for i in range(count)) + "}" for count in (32, 33)]
    + ['{"a":"' + "é" * 256 + '"}', '{"a":"' + "é" * 257 + '"}'],
    "trace": [
        '"x"',
        "1",
        "-1.5",
        "true",
        "false",
        "null",
        "tru",
        "01",
        "[1]",
        '{"a":{}}',
        '"\\n"',
        "-",
        "nan",
        '"\x00"',
    ],
}


@st.composite
def _spelt(draw: st.DrawFn) -> bytes:
    """An event whose fields come in any order, some twice or not at all, each in one of the ways to write it."""
    names = draw(st.permutations(list(_spellings)))
    names = [*names[: draw(st.integers(6, len(names)))], *draw(st.lists(st.sampled_from(names), max_size=1))]
    # Mostly the plain way, which stands first, so that many are events.
    ways = [draw(st.integers(0, 3)) == 3 for _ in names]
    written = [
        draw(st.sampled_from(_spellings[n])) if odd else _spellings[n][0] for n, odd in zip(names, ways, strict=True)
    ]
    fields = [
        f'{draw(_blanks)}"{n}"{draw(_blanks)}:{draw(_blanks)}{w}{draw(_blanks)}'
        for n, w in zip(names, written, strict=True)
    ]
    whole = draw(_blanks) + "{" + ",".join(fields) + "}" + draw(st.sampled_from(["", "", "", " ", ",", "}", "x"]))
    return whole.encode("utf-8", "surrogatepass")


spelt = _spelt()


# Nothing in a batch of these but an address may be wrong: no value makes the decoder look at each.
_well_formed = st.sampled_from(["192.0.2.1", "::1", "192.0.2.256", "", "localhost", "::1%eth0"]).map(
    lambda ip: event("id-1", client_ip=ip)
)
_NESTED = [b"[" * 3_000, b'{"a":' * 3_000, b'{"dimensions":' * 3_000]
values = st.one_of(
    st.none(),
    st.binary(max_size=40),
    _almost_events(),
    _mutilated(),
    json_values.map(lambda value: json.dumps(value).encode()),
    st.integers(0, 9).map(lambda i: event(f"id-{i}")),
    st.sampled_from(_NESTED),
)
_names = st.sampled_from([REROUTED, "producer", "reason", "", b"\xff\xfe", "ünï"]) | st.text(max_size=5)
headers = st.lists(st.tuples(_names, st.none() | st.binary(max_size=20)), max_size=3)
raw_records = st.builds(Raw, st.none() | st.binary(max_size=20), values, headers)


class _Shelf:
    """An object store in memory."""

    available = True

    def __init__(self) -> None:
        self.objects: dict[str, bytes] = {}

    async def put(self, key: str, data: bytes) -> None:
        self.objects[key] = data


def _fetched(data: bytes) -> Batch:
    partition = TopicPartition("traffic.events.v1", 0)
    records = FetchedRecords(data)
    return decode_fetch(
        "traffic.events.v1", 0, PartitionRecords(partition, records, [], 0, None, None, True, READ_COMMITTED)
    )


def _folded(fetched: Batch) -> tuple[World, Process, Flush]:
    world = World()
    process = Process(RULES, world)
    process.fold.step(fetched)
    process.position = fetched.end
    flush = process.seal()
    process.commit(flush)
    process.materialise()
    return world, process, flush


# -- laws --------------------------------------------------------------------------------------------------------


@settings(max_examples=150, deadline=None)
@given(st.lists(raw_records, min_size=1, max_size=12), st.sampled_from(CODECS))
def test_any_records_are_each_accounted_for_once(sent: list[Raw], codec: str) -> None:
    fetched = _fetched(record_batch(sent, codec=codec, append_ms=DAY_MS))
    assert [(r.key, r.value) for r in fetched.records()] == [(r.key, r.value) for r in sent]
    world, process, flush = _folded(fetched)
    totals = process.fold.state.totals
    assert sum(totals[name] for name in ("accepted", "duplicate", "rerouted", "dead")) == len(sent)
    assert (totals["accepted"], totals["rerouted"], totals["dead"]) == (
        len(world.events),
        len(flush.emits),
        len(flush.dead),
    )
    for letter in flush.dead:
        assert (letter.key, letter.value) == (sent[letter.offset].key, sent[letter.offset].value)
    _assert_can_be_written(flush.dead)


def _assert_can_be_written(dead: Sequence[DeadLetter]) -> None:
    """Each becomes a record and a row, its value whole in one place or the other."""
    shelf = _Shelf()
    letters = DeadLetters("traffic", "t", 600, shelf)
    emits = asyncio.run(letters.emits(dead))
    rows = letters.rows(dead).to_pylist() if dead else []
    for letter, emit, row in zip(dead, emits, rows, strict=True):
        if row["object_key"]:
            assert shelf.objects[row["object_key"]] == (letter.value or b"")
        else:
            assert emit.value == letter.value
        sent = Raw(emit.key, emit.value, emit.headers)
        assert _fetched(record_batch([sent])).value(0) == emit.value


@settings(max_examples=150, deadline=None)
@given(st.data(), st.sampled_from(CODECS))
def test_any_payload_is_read_or_kept_whole(data: st.DataObject, codec: str) -> None:
    sent = [Raw(b"k", event(f"id-{i}"), (("producer", b"edge"),)) for i in range(6)]
    number, encode = ENCODERS[codec]
    payload = bytearray(encode(plain_records(sent)))
    for _ in range(data.draw(st.integers(0, 3))):
        at = data.draw(st.integers(0, len(payload)))
        payload[at : at + data.draw(st.sampled_from([0, 1, 8, 1000]))] = data.draw(st.binary(max_size=8))
    count = data.draw(st.sampled_from([6, 6, 5, 7, 0]))
    poison = sealed(bytes(payload), count, number, base_offset=1, append_ms=DAY_MS)
    before, after = [Raw(b"k", event("before"))], [Raw(b"k", event("after"))]
    end = max(count, 1) + 1
    fetched = _fetched(record_batch(before) + poison + record_batch(after, base_offset=end))
    assert fetched.value(0) == before[0].value
    assert fetched.value(len(fetched) - 1) == after[0].value
    for piece in fetched.unreadable:
        assert (piece.data, piece.append_ms) == (poison, DAY_MS)
        assert piece.error
    _folded(fetched)


@settings(max_examples=300, deadline=None)
@given(st.lists(values | spelt, max_size=12) | st.lists(_well_formed, max_size=6))
def test_a_batch_is_decoded_as_its_records_one_by_one(sent: list[bytes | None]) -> None:
    decoded = decode_batch(_values(sent))
    alone = [decode(value) for value in sent]
    assert _events(decoded) == [result for result in alone if isinstance(result, TrafficEvent)]
    assert decoded.rows.tolist() == [i for i, result in enumerate(alone) if isinstance(result, TrafficEvent)]
    assert decoded.malformed == [(i, result) for i, result in enumerate(alone) if isinstance(result, Malformed)]
    assert decoded.rows.dtype == np.int64


def _values(sent: Sequence[bytes | None]) -> native.Texts:
    return Batch.of("t", 0, 0, len(sent), [Record(i, 0, value) for i, value in enumerate(sent)]).values


def _events(decoded: Decoded) -> list[TrafficEvent]:
    """The events that the columns say."""
    return [_event(decoded, row) for row in range(len(decoded))]


def _event(decoded: Decoded, row: int) -> TrafficEvent:
    texts = [decoded.text(column) for column in range(6)]
    event_id, method, path, address, agent, labels = (
        None if text.size[row] < 0 else text.bytes_of(row).decode() for text in texts
    )
    assert event_id is not None and method is not None and path is not None and address is not None
    timestamp_ms, status, size = decoded.numbers[:, row].tolist()
    ms = decoded.response_ms[row]
    return TrafficEvent(
        event_id,
        timestamp_ms,
        method,
        path,
        status,
        address,
        None if np.isnan(ms) else float(ms),
        None if size < 0 else size,
        agent,
        None if labels is None else json.loads(labels),
    )


@settings(deadline=None)
@given(values)
def test_what_is_accepted_means_what_it_says(value: bytes | None) -> None:
    decoded = decode(value)
    if isinstance(decoded, TrafficEvent):
        plain = json.loads(value or b"")
        for name, field in msgspec.to_builtins(decoded).items():
            assert plain.get(name) == field


@settings(max_examples=60, deadline=None)
@given(st.lists(values, max_size=12))
def test_what_lies_beside_an_event_changes_nothing_for_it(beside: list[bytes | None]) -> None:
    good = [event(f"good-{i}", path=f"/{i}") for i in range(3)]
    mixed = [*beside[:6], good[0], good[1], *beside[6:], good[2]]
    fold = new_fold(TrafficRules(partition=0, partitions=1))
    fold.step(batch([Record(i, DAY_MS, value) for i, value in enumerate(mixed)], 0, len(mixed)))
    (table,) = fold.seal(Position(1, len(mixed))).rows["traffic_events_rows"]
    rows = {row["event_id"]: row["path"] for row in table.to_pylist()}
    assert {f"good-{i}": f"/{i}" for i in range(3)}.items() <= rows.items()
