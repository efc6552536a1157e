"""Pieces of a question: all of it, none too long, cut where a sentence ends."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streams.ai.segments import split

_TEXT = st.text(
    st.one_of(st.sampled_from(" .!?,。！？，\n」\"'a字😀é"), st.characters(exclude_categories=["Cs"])), max_size=300
)
_SIZES = st.integers(1, 60).flatmap(lambda limit: st.tuples(st.just(limit), st.integers(0, limit - 1)))


@given(_TEXT, _SIZES)
def test_the_pieces_are_the_text_and_each_begins_with_the_end_of_what_was_before(
    text: str, sizes: tuple[int, int]
) -> None:
    limit, overlap = sizes
    first, *rest = split(text, limit, overlap)
    seen = first
    for piece in rest:
        lead = min(overlap, len(seen))
        assert piece[:lead] == seen[len(seen) - lead :]
        assert len(piece) > lead
        seen += piece[lead:]
    assert seen == text


@given(_TEXT, _SIZES)
def test_no_piece_is_longer_than_the_limit_and_each_is_a_text_of_its_own(text: str, sizes: tuple[int, int]) -> None:
    for piece in split(text, *sizes):
        assert len(piece) <= sizes[0]
        piece.encode()  # no half of a character


@given(_TEXT, _SIZES)
def test_there_are_not_more_than_twice_as_many_pieces_as_would_do(text: str, sizes: tuple[int, int]) -> None:
    limit, overlap = sizes
    assert len(split(text, limit, overlap)) <= 2 * len(text) / (limit - overlap) + 1


@given(_TEXT)
def test_what_fits_is_not_split(text: str) -> None:
    assert split(text, max(1, len(text)), 0) == [text]


@pytest.mark.parametrize(
    ("text", "limit", "pieces"),
    [
        ("One two. Three four. Five.", 22, ["One two. Three four. ", "Five."]),
        ("一二三。四五六！七八九？", 9, ["一二三。四五六！", "七八九？"]),
        ("他说：「好。」然后走了。再见。", 13, ["他说：「好。」然后走了。", "再见。"]),
        ("Pi is 3.14159 or so", 10, ["Pi is ", "3.14159 or", " so"]),
        ("first line\nsecond line", 15, ["first line\n", "second line"]),
        ("a, b, c, d, e, f", 8, ["a, b, c,", " d, e, f"]),
        ("x" * 25, 10, ["x" * 10, "x" * 10, "x" * 5]),
        ("😀" * 5, 2, ["😀😀", "😀😀", "😀"]),
        # An end in the first half is passed over: it would leave a piece of two characters.
        ("A. bbbb cccc dddd", 11, ["A. bbbb ", "cccc dddd"]),
        # Whether a full stop ends a sentence is told by the character that no longer fits.
        ("aaaa bbbb. cccc", 10, ["aaaa bbbb.", " cccc"]),
        ("aaaa bb.bbcc.c dddd", 13, ["aaaa bb.bbcc.", "c dddd"]),
    ],
)
def test_where_it_cuts(text: str, limit: int, pieces: list[str]) -> None:
    assert split(text, limit, 0) == pieces


def test_overlap_is_the_end_of_what_was_before() -> None:
    assert split("One two. Three four. Five six.", 14, 5) == [
        "One two. ",
        "two. Three ",
        "hree four. ",
        "our. Five six.",
    ]


@pytest.mark.parametrize("unit", ["!", '."', "。", " ", "\n", "a b. ", "x"])
def test_no_text_takes_long(unit: str) -> None:
    """A fold splits: what a client sends must not hold up a partition."""
    text = unit * (262_144 // len(unit))
    began = time.process_time()
    pieces = split(text, 12_000, 200)
    assert time.process_time() - began < 1.0
    assert len(pieces) <= 45
