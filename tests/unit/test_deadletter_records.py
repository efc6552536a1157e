"""A letter gives its record back as it was; replayed, the record says of which letter it is, and may be sent on once more."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streams.runtime.deadletters import DeadLetters
from topics.deadletters import Letter, LetterId, Replay, parse_id, read_letter, read_replay, replayed_headers
from topics.headers import Headers, header
from topics.records import DeadLetter
from topics.rerouting import REROUTED

ID = LetterId("traffic.deadletter.v1", 1, 17)
OWN = [("reason", b"late"), ("source_topic", b"traffic.events.v1"), ("attempts", b"2")]
NAMES = st.sampled_from(
    ["reason", "object", "original_reason", "original_original_object", "producer", "replay", "x", "original_x"]
)


class NoStore:
    """Nothing goes there."""

    available = True

    async def put(self, key: str, data: bytes) -> None:
        raise AssertionError(key)


def read(headers: Headers, **other: Any) -> Letter:
    return read_letter(ID, 5, other.get("key"), other.get("value"), headers)


@given(st.lists(st.tuples(NAMES, st.none() | st.binary(max_size=20)), max_size=6))
async def test_a_letter_gives_its_record_back_as_it_was(headers: Headers) -> None:
    dead = DeadLetter("late", "", "traffic.events.v1", 1, 9, 5, b"k", b"v", tuple(headers))
    (emit,) = await DeadLetters("traffic", ID.topic, 1_000, NoStore()).emits([dead])
    letter = read_letter(ID, 5, emit.key, emit.value, emit.headers)
    assert (letter.key, letter.value, letter.headers) == (b"k", b"v", list(headers))
    assert (letter.reason, letter.source_partition, letter.source_offset, letter.attempts) == ("late", 1, 9, 1)
    assert letter.no_record == ""


async def test_a_record_that_dies_again_counts_on_and_forgets_its_replay() -> None:
    letter = read([*OWN, ("x", b"1")])
    headers = replayed_headers(letter, times=3)
    assert read_replay(headers) == Replay(str(ID), 2, 3)
    dead = DeadLetter("late", "", "traffic.events.v1", 1, 44, 6, b"k", b"v", headers)
    (emit,) = await DeadLetters("traffic", ID.topic, 1_000, NoStore()).emits([dead])
    again = read(emit.headers)
    assert (again.attempts, again.replay_of, again.headers) == (3, str(ID), [("x", b"1")])


def test_a_replayed_record_may_be_sent_on_once_more() -> None:
    letter = read([*OWN, (REROUTED, b"0/7"), ("x", b"1")])
    assert header(letter.headers, REROUTED) == b"0/7"
    headers = replayed_headers(letter, times=1)
    assert [name for name, _ in headers] == ["x", "replay"]


@pytest.mark.parametrize(
    ("headers", "why"),
    [
        ([], "does not say of which record"),
        ([("source_topic", b"audio.chunks.v1")], "does not say of which record"),
        ([("source_topic", ID.topic.encode())], "does not say of which record"),
        ([*OWN, ("key_bytes_left_out", b"9")], "9 bytes of its key are missing"),
        ([*OWN, ("headers_left_out", b"2")], "2 of its headers are missing"),
        ([*OWN, ("object", b"audio/s/recording.flac")], "where no dead letter's bytes are kept"),
        ([("reason", b"unreadable"), *OWN[1:]], "no client can decode"),
    ],
)
def test_what_is_no_whole_record_says_why(headers: Headers, why: str) -> None:
    letter = read(headers)
    assert why in letter.no_record
    assert not letter.owns_object


@pytest.mark.parametrize("value", [b"", b"{}", b"\xff", b"[" * 2_000, b'{"letter":1,"attempts":1,"times":1}'])
def test_a_header_of_another_s_is_no_replay(value: bytes) -> None:
    assert read_replay([("replay", value)]) is None


def test_ids_are_read_as_they_are_written() -> None:
    assert parse_id(str(ID)) == ID
    assert [parse_id(text) for text in ("", "t/1", "t/1/x", "t/1/2/3", "t/-1/2", "a b/1/2")] == [None] * 6
