"""What is written to a changelog, and whatever else is read back later, is read back as it was."""

from __future__ import annotations

import asyncio

import msgspec
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from streams.runtime.changelog import Meta, decode_meta
from streams.runtime.deadletters import DeadLetters
from streams.traffic import delta, rollup
from streams.traffic.delta import Delta, decode_delta, encode_delta, encode_pieces
from streams.traffic.rollup import HourRollup, Rollups
from tests.traffic import DAY_MS, HOUR_MS
from topics.records import DeadLetter

HOUR = DAY_MS // HOUR_MS

_texts = st.text(max_size=12) | st.sampled_from(["/v1/docs:batchGet", "a|||b", "a", "\x00", "{other}", ""])
_groups = st.sampled_from([(), ("zone", "eu"), ("zone", ""), ("zone", "eu", "tier", "\x00")])
keys = st.tuples(_texts, _texts, st.integers(1, 5), _groups)
_u32 = st.integers(0, 2**32 - 1)
_f32 = st.floats(0, 86_400_000, width=32)


@st.composite
def deltas(draw: st.DrawFn) -> Delta:
    named = draw(st.lists(keys, min_size=1, max_size=6, unique=True))
    sums = draw(
        st.lists(st.lists(st.integers(0, 2**62), min_size=6, max_size=6), min_size=len(named), max_size=len(named))
    )
    hashes = [sorted(draw(st.sets(_u32, max_size=6))) for _ in named]
    values = [draw(st.lists(_f32, max_size=6)) for _ in named]
    return Delta(
        HOUR,
        draw(st.integers(0, 2**63 - 1)),
        named,
        np.array(sums, dtype=np.int64).T,
        np.array([len(run) for run in hashes], dtype=np.int64),
        np.array([h for run in hashes for h in run], dtype=np.uint32),
        np.array([len(run) for run in values], dtype=np.int64),
        np.array([v for run in values for v in run], dtype=np.float32),
    )


def _plain(found: Delta) -> tuple[object, ...]:
    arrays = (found.sums, found.hash_counts, found.hashes, found.value_counts, found.values)
    return found.hour, found.version, found.keys, *[array.tolist() for array in arrays]


def _states(hour: HourRollup) -> dict[object, object]:
    """Everything of each key."""
    rows = [np.array([row]) for row in range(len(hour))]
    return {
        key: (hour.sums[:, at].tolist(), int(hour.changed[at][0]), hour.visitors.dump(at), hour.times.dump(at))
        for key, at in zip(hour.keys, rows, strict=True)
    }


@settings(deadline=None)
@given(deltas())
def test_a_delta_is_read_back_as_it_was(made: Delta) -> None:
    again = decode_delta(HOUR, encode_delta(made))
    assert _plain(again) == _plain(made)
    assert encode_delta(again) == encode_delta(made)


@settings(deadline=None)
@given(deltas(), st.integers(60, 400))
def test_a_delta_in_pieces_adds_up_to_the_whole(made: Delta, record_bytes: int) -> None:
    whole, pieced, before = HourRollup(), HourRollup(), delta.RECORD_BYTES
    whole.apply(made)
    delta.RECORD_BYTES = record_bytes
    try:
        pieces = list(encode_pieces(made))
    finally:
        delta.RECORD_BYTES = before
    for piece in pieces:
        pieced.apply(decode_delta(HOUR, piece))
    assert _states(pieced) == _states(whole)


@settings(deadline=None)
@given(st.lists(deltas(), min_size=1, max_size=4), st.integers(1, 4))
def test_a_snapshot_is_read_back_as_it_was(made: list[Delta], chunk_keys: int) -> None:
    live, again, before = HourRollup(), Rollups("t", 0), rollup._CHUNK_KEYS
    for each in made:
        each.sums %= 2**40
        live.apply(each)
    rollup._CHUNK_KEYS = chunk_keys
    try:
        chunks = list(live.chunks())
    finally:
        rollup._CHUNK_KEYS = before
    assert len(chunks) == -(-len(live) // chunk_keys)
    for number, chunk in enumerate(chunks):
        again.restore(rollup._SNAPSHOT_KEY.pack(rollup.SNAPSHOT, HOUR, number), chunk)
    assert _states(again.hours[HOUR]) == _states(live)
    # What comes after a restore is what would have come without one.
    live.apply(made[0])
    again.apply(made[0])
    assert _states(again.hours[HOUR]) == _states(live)


@settings(deadline=None)
@given(st.builds(Meta, st.text(), *[st.integers(0, 2**53)] * 4, st.integers(0, 9)))
def test_meta_is_read_back_as_it_was(meta: Meta) -> None:
    assert decode_meta(meta.encode()) == meta
    # A later version may write more than this one knows.
    more = {**msgspec.to_builtins(meta), "later": [1]}
    assert decode_meta(msgspec.json.encode(more)) == meta


class _NoShelf:
    available = True

    async def put(self, key: str, data: bytes) -> None:
        raise AssertionError("all fits the topic")


_headers = st.lists(st.tuples(st.text(max_size=8) | st.just("reason"), st.none() | st.binary(max_size=9)), max_size=4)
letters = st.builds(
    DeadLetter,
    reason=st.sampled_from(["invalid", "late"]),
    error=st.text(max_size=40),
    topic=st.just("traffic.events.v1"),
    partition=st.integers(0, 65_535),
    offset=st.integers(0, 2**48),
    append_ms=st.integers(0, 2**42),
    key=st.none() | st.binary(),
    value=st.none() | st.binary(),
    headers=_headers,
)


@settings(deadline=None)
@given(letters)
def test_a_dead_letter_gives_its_record_back(letter: DeadLetter) -> None:
    made = DeadLetters("traffic", "t", 1 << 20, _NoShelf())
    (emit,) = asyncio.run(made.emits([letter]))
    ours, theirs = dict(emit.headers[:6]), emit.headers[6:]
    again = DeadLetter(
        (ours["reason"] or b"").decode(),
        (ours["error"] or b"").decode(),
        (ours["source_topic"] or b"").decode(),
        int(ours["source_partition"] or b""),
        int(ours["source_offset"] or b""),
        letter.append_ms,
        emit.key,
        emit.value,
        [("reason" if name == "original_reason" else name, value) for name, value in theirs],
    )
    assert again == letter
    ((row,), emitted) = made.rows([letter]).to_pylist(), emit.headers
    assert (row["source_offset"], row["append_ms"], row["reason"]) == (letter.offset, letter.append_ms, letter.reason)
    assert row["size_bytes"] == len(letter.value or b"")
    assert len(emitted) == 6 + len(letter.headers)
