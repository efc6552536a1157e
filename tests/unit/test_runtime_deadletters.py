"""A dead letter is its record, byte for byte, with a reason and where it came from, or a reference to an object."""

from __future__ import annotations

from typing import Any

import pytest

from streams.runtime.deadletters import DeadLetters
from topics.headers import Headers
from topics.records import DeadLetter, Emit

LIMIT = 1_000


class Shelf:
    """An object store in memory."""

    available = True

    def __init__(self) -> None:
        self.objects: dict[str, bytes] = {}

    async def put(self, key: str, data: bytes) -> None:
        self.objects[key] = data


def letter(**fields: Any) -> DeadLetter:
    plain = {
        "reason": "invalid",
        "error": "no path",
        "topic": "t.v1",
        "partition": 2,
        "offset": 77,
        "append_ms": 1_795_132_800_000,
        "key": b"k",
        "value": b"{}",
        "headers": (("producer", b"edge"), ("x", None)),
    }
    return DeadLetter(**{**plain, **fields})


async def _written(dead: DeadLetter) -> tuple[Emit, dict[str, Any], dict[str, bytes]]:
    shelf = Shelf()
    letters = DeadLetters("traffic", "t.dead", LIMIT, shelf)
    (emit,) = await letters.emits([dead])
    (row,) = letters.rows([dead]).to_pylist()
    return emit, row, shelf.objects


async def test_a_record_that_fits_is_kept_whole() -> None:
    emit, row, objects = await _written(letter())
    assert (emit.topic, emit.key, emit.value, emit.partition) == ("t.dead", b"k", b"{}", None)
    assert list(emit.headers) == [
        ("reason", b"invalid"),
        ("error", b"no path"),
        ("source_topic", b"t.v1"),
        ("source_partition", b"2"),
        ("source_offset", b"77"),
        ("attempts", b"1"),
        ("producer", b"edge"),
        ("x", None),
    ]
    assert row == {
        "stream": "traffic",
        "source_topic": "t.v1",
        "source_partition": 2,
        "source_offset": 77,
        "append_ms": 1_795_132_800_000,
        "reason": "invalid",
        "error": "no path",
        "producer": "edge",
        "size_bytes": 2,
        "object_key": "",
    }
    assert objects == {}


async def test_headers_of_our_names_are_the_record_s_own_still() -> None:
    emit, _, _ = await _written(letter(headers=(("reason", b"mine"), ("object", b"mine"), ("original_reason", b"x"))))
    assert list(emit.headers)[6:] == [
        ("original_reason", b"mine"),
        ("original_object", b"mine"),
        ("original_original_reason", b"x"),
    ]
    assert dict(emit.headers[:6])["reason"] == b"invalid"


@pytest.mark.parametrize("value", [None, b"", b"\x00\xff"])
async def test_values_of_any_kind_pass_as_they_are(value: bytes | None) -> None:
    emit, row, _ = await _written(letter(value=value, key=None, headers=()))
    assert (emit.key, emit.value, row["size_bytes"], row["producer"]) == (None, value, len(value or b""), "")


async def test_a_record_too_large_goes_to_the_object_store() -> None:
    value = bytes(range(256)) * 8
    emit, row, objects = await _written(letter(value=value))
    name = "deadletters/t.v1/2/00000000000000000077-1795132800000"
    assert objects == {name: value}
    assert (emit.key, emit.value) == (b"k", None)
    assert list(emit.headers)[6:] == [("object", name.encode()), ("producer", b"edge"), ("x", None)]
    assert (row["object_key"], row["size_bytes"]) == (name, len(value))


async def test_key_and_headers_too_large_are_left_out_aloud() -> None:
    headers: Headers = [("producer", b"edge"), ("big", b"h" * 2_000), ("small", b"1")]
    emit, row, objects = await _written(letter(key=b"K" * 2_000, headers=headers))
    assert emit.key is None
    assert list(emit.headers)[7:] == [
        ("key_bytes_left_out", b"2000"),
        ("headers_left_out", b"2"),
        ("producer", b"edge"),
    ]
    assert emit.nbytes <= LIMIT
    assert objects == {row["object_key"]: b"{}"}


async def test_an_error_of_any_length_and_bytes_is_cut_to_fit() -> None:
    emit, row, _ = await _written(letter(error="ü" * 5_000, headers=(("producer", b"\xff" * 500),), value=None))
    assert dict(emit.headers)["error"].decode() == row["error"]
    assert len(row["producer"]) == 128


async def test_nothing_dead_nothing_written() -> None:
    letters = DeadLetters("traffic", "t.dead", LIMIT, Shelf())
    assert await letters.emits([]) == []
    assert letters.rows([]) is None
