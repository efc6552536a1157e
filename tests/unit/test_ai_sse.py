"""The reader of server-sent events: however a stream is cut into pieces, its events are the same."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streams.ai.model_replies import decode_event
from streams.ai.sse import MAX_EVENT_BYTES, EventDecoder

STREAM = (
    "\ufeffdata: one\n\n"
    ": a comment\r\n\r\n"
    "event: chunk\r\nid: 7\r\ndata: two\r\ndata:lines \r\n\r\n"
    "retry: 10\rdata: 天空😀\r\r"
    "data\n\n"
    "dataset: no\n\n\n\n"
    "data:  {: }\n\n"
    "data: never ended"
).encode()
EVENTS = [b"one", b"two\nlines ", "天空😀".encode(), b"", b" {: }"]


def _read(stream: bytes, cuts: list[int]) -> list[bytes]:
    decoder, found = EventDecoder(), []
    for start, end in zip([0, *cuts], [*cuts, len(stream)], strict=True):
        found += decoder.feed(stream[start:end])
    return found


@given(st.lists(st.integers(0, len(STREAM)), max_size=30).map(sorted))
def test_events_are_the_same_in_whatever_pieces_they_come(cuts: list[int]) -> None:
    assert _read(STREAM, cuts) == EVENTS


def test_byte_by_byte() -> None:
    assert _read(STREAM, list(range(1, len(STREAM)))) == EVENTS


@pytest.mark.parametrize("piece", [b"x" * 65_536, b"data: " + b"x" * 65_536 + b"\n"])
def test_an_event_that_does_not_end_is_not_held_without_bound(piece: bytes) -> None:
    decoder = EventDecoder()
    with pytest.raises(ValueError, match="more than"):
        for _ in range(2 * MAX_EVENT_BYTES // len(piece)):
            assert decoder.feed(piece) == []


def test_many_events_are_more_than_one_may_be() -> None:
    event = b"data: " + b"x" * 65_536 + b"\n\n"
    decoder = EventDecoder()
    assert sum(len(decoder.feed(event)) for _ in range(2 * MAX_EVENT_BYTES // len(event))) > 200


def test_half_a_surrogate_pair_does_not_break_a_stream() -> None:
    reply = decode_event(json.dumps({"choices": [{"delta": {"content": "\ud83d"}}]}).encode())
    assert reply.text.content == "\ud83d"


@pytest.mark.parametrize("data", [b"[]", b'"x"', b"{", b"\xff", b'{"choices": 1}', b'{"error": {"message": "down"}}'])
def test_what_is_no_chunk_is_an_error(data: bytes) -> None:
    with pytest.raises(ValueError):
        decode_event(data)
