"""The kernels against plain Python, and within their bounds: what lies outside their data is never read."""

from __future__ import annotations

import ctypes
import json
import mmap
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from compose.local.generate import Shape, generate_events
from streams.traffic.columns import _LIMITS, decode_batch
from tests.recordbatch import Raw, plain_records
from tests.traffic import DAY_MS, event
from topics import native
from topics.headers import header, write_headers
from topics.partitioning import partition_of
from topics.traffic import TrafficEvent, decode

strings = st.lists(st.binary(max_size=40) | st.sampled_from([b"", b"a", b"same", b"x" * 8, b"y" * 300]), max_size=60)


@contextmanager
def at_the_edge(payload: bytes) -> Iterator[np.ndarray]:
    """The bytes at the very end of a page, before one that must not be read: a process that does is killed."""
    page = mmap.PAGESIZE
    whole = -(-max(1, len(payload)) // page) * page
    memory = mmap.mmap(-1, whole + page)
    start = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    libc = ctypes.CDLL(None, use_errno=True)
    memory[whole - len(payload) : whole] = payload
    assert libc.mprotect(ctypes.c_void_p(start + whole), ctypes.c_size_t(page), 0) == 0
    try:
        view = (ctypes.c_uint8 * len(payload)).from_address(start + whole - len(payload))
        yield np.ctypeslib.as_array(view)
    finally:
        libc.mprotect(ctypes.c_void_p(start + whole), ctypes.c_size_t(page), mmap.PROT_READ | mmap.PROT_WRITE)


@given(strings, st.integers(1, 1000))
def test_keys_go_where_javas_client_puts_them(keys: list[bytes], partitions: int) -> None:
    found = native.partitions_of(native.texts_of(keys), partitions)
    assert found.tolist() == [partition_of(key, partitions) for key in keys]


@pytest.mark.parametrize(
    ("text", "digest"),
    [
        (b"", "00000000000000000000000000000000"),
        (b"hello", "cbd8a7b341bd9b025b1e906a48ae1d19"),
        (b"The quick brown fox jumps over the lazy dog", "e34bbc7bbc071b6c7a433ca9c49a9347"),
    ],
)
def test_digests_are_murmur3s(text: bytes, digest: str) -> None:
    words = native.digests_of(native.texts_of([text])).view("<u8")[0].tolist()
    assert "".join(f"{word:016x}" for word in words) == digest


@given(strings)
def test_digests_stand_for_their_strings(keys: list[bytes]) -> None:
    found = [row.tobytes() for row in native.digests_of(native.texts_of(keys))]
    assert len(set(found)) == len(set(keys))
    assert found == [native.digests_of(native.texts_of([key]))[0].tobytes() for key in keys]


@given(st.lists(st.lists(st.text(max_size=12) | st.none(), max_size=200), max_size=5))
def test_a_dictionary_numbers_words_as_they_come(parts: list[list[str | None]]) -> None:
    words, known = native.Words(), dict[str, int]()
    for part in parts:
        texts = native.texts_of([(text or "").encode() for text in part])
        texts.size[[i for i, text in enumerate(part) if text is None]] = -1
        expected = [-1 if text is None else known.setdefault(text, len(known)) for text in part]
        assert words.codes(texts).tolist() == expected
    assert words.array().to_pylist() == list(known)
    assert len(words) == len(known)


def test_a_dictionary_grows_past_what_it_began_with() -> None:
    keys = [b"%d" % (i % 70_000) * (1 + i % 3) for i in range(210_000)]
    words, known = native.Words(), dict[bytes, int]()
    assert words.codes(native.texts_of(keys)).tolist() == [known.setdefault(key, len(known)) for key in keys]


_NAMES = st.sampled_from(["producer", "Producer", "producer2", "prod", "", "ünï"])
_HEADERS = st.lists(st.tuples(_NAMES, st.none() | st.binary(max_size=5) | st.just(b"x" * 100)), max_size=5)


@given(st.lists(_HEADERS, max_size=8))
def test_the_first_header_of_a_name_is_found(records: list[list[tuple[str, bytes | None]]]) -> None:
    found = native.header_of(native.texts_of([write_headers(headers) for headers in records]), b"producer")
    values = [None if found.size[i] < 0 else found.bytes_of(i) for i in range(len(records))]
    assert values == [header(headers, "producer") for headers in records]


@settings(max_examples=200, deadline=None)
@given(_HEADERS, st.data())
def test_looking_for_a_header_stays_inside_the_record(
    headers: list[tuple[str, bytes | None]], data: st.DataObject
) -> None:
    raw = bytearray(write_headers(headers))
    for _ in range(data.draw(st.integers(0, 3))):
        at = data.draw(st.integers(0, len(raw)))
        raw[at : at + data.draw(st.integers(0, 2))] = data.draw(st.binary(max_size=3))
    with at_the_edge(bytes(raw)) as view:
        found = native.header_of(native.Texts(view, np.array([0]), np.array([len(view)])), b"producer")
        assert found.size[0] < 0 or found.at[0] + found.size[0] <= len(view)


@given(st.lists(st.integers(-(2**63), 2**63 - 1) | st.integers(0, 9), max_size=300))
def test_rows_are_grouped_in_order_of_appearance(keys: list[int]) -> None:
    distinct, groups = native.group(np.array(keys, dtype=np.int64))
    known: dict[int, int] = {}
    assert groups.tolist() == [known.setdefault(key, len(known)) for key in keys]
    assert distinct.tolist() == list(known)


@given(
    st.lists(
        st.tuples(
            st.integers(0, 4),
            st.integers(100, 599),
            st.integers(-1, 2**50) | st.integers(2**60, 2**63 - 1),
            st.integers(-1, 86_400_000_000),
            st.floats(0, 1e8) | st.just(float("nan")),
        ),
        max_size=200,
    )
)
def test_groups_add_up(rows: list[tuple[int, int, int, int, float]]) -> None:
    groups, status, size, us, ms = (
        np.array(column, dtype=kind)
        for column, kind in zip(list(zip(*rows, strict=True)) or [()] * 5, [np.int64] * 4 + [np.float64], strict=True)
    )
    sums = native.sums_of(groups, status, size, us, 5)
    for g in range(5):
        own = [row for row in rows if row[0] == g]
        timed = [row[3] for row in own if row[3] >= 0]
        assert sums[:, g].tolist() == [
            len(own),
            sum(row[1] >= 500 for row in own),
            min(sum(max(0, row[2]) for row in own), 2**63 - 1),
            sum(timed),
            len(timed),
            max(timed, default=0),
        ]
    counts = np.array([sum(row[0] == g and row[4] >= 0 for row in rows) for g in range(5)])
    dealt = native.dealt(groups, ms, counts).tolist()
    assert dealt == [float(np.float32(row[4])) for g in range(5) for row in rows if row[0] == g and row[4] >= 0]


def test_plain_events_need_no_closer_look() -> None:
    made = [value for _, value in generate_events(1, 5_000, Shape(end_ms=DAY_MS))]
    made += [event("é", path="/日本", user_agent=None, dimensions={"zone": "eu"})]
    made += [json.dumps(json.loads(event("spaced", more=1.5)), indent=2).encode()]
    assert not native.read_events(native.texts_of(made), _LIMITS).look.any()


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_a_reader_stays_inside_its_value(data: st.DataObject) -> None:
    value = event("id-1", path="/ünï/日本/🙂", user_agent="x", bytes=12, response_time_ms=1.5, dimensions={"a": "b"})
    mutilated = bytearray(value[: data.draw(st.integers(0, len(value)))])
    for _ in range(data.draw(st.integers(0, 3))):
        at = data.draw(st.integers(0, len(mutilated)))
        mutilated[at : at + data.draw(st.integers(0, 2))] = data.draw(st.binary(max_size=2))
    with at_the_edge(bytes(mutilated)) as view:
        texts = native.Texts(view, np.array([0]), np.array([len(view)]))
        decoded = decode_batch(texts)
        assert len(decoded) == isinstance(decode(bytes(mutilated)), TrafficEvent)
        native.partitions_of(texts, 4)
        native.digests_of(texts)
        native.Words().codes(texts)


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_a_splitter_stays_inside_its_batch(data: st.DataObject) -> None:
    sent = [Raw(b"key", b"value", (("name", b"x"), ("none", None))), Raw(None, None), Raw(b"", b"v" * 200)]
    payload = bytearray(plain_records(sent))
    payload = payload[: data.draw(st.integers(0, len(payload)))]
    for _ in range(data.draw(st.integers(0, 3))):
        at = data.draw(st.integers(0, len(payload)))
        payload[at : at + data.draw(st.integers(0, 2))] = data.draw(st.binary(max_size=3))
    count = data.draw(st.sampled_from([0, 3, 5, 2**31 - 1]))
    with at_the_edge(bytes(payload)) as view:
        columns, whole = native.split_records(view, count, 0, 7, 10, 0)
    assert whole == (columns.shape[1] == count)
    offsets = columns[native.OFFSET].tolist()
    assert offsets == sorted(set(offsets) & {7, 8, 9})
    for at, size in ((native.KEY_AT, native.KEY_SIZE), (native.VALUE_AT, native.VALUE_SIZE), (native.HEADERS_AT, 7)):
        assert (columns[at] >= 0).all()
        assert (columns[size] >= -1).all()
        assert (columns[at] + np.maximum(columns[size], 0) <= len(payload)).all()
