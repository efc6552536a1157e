"""A long question in pieces that a model takes one by one: cut at sentence ends, each with the end of the one before."""

from __future__ import annotations

import re

# The marks that end a sentence, with the quotes and brackets that close after them. A Latin mark ends one only before a
# blank: "3.14" and "example.com" go on. A run of marks is looked at once, from its beginning and without backtracking:
# a question of nothing but "!" would else take minutes.
_CLOSERS = "[\"'’”»)\\]」』）】》〉]*+"
_SENTENCE_END = re.compile(f"(?:[。！？｡．…]++{_CLOSERS}|(?<![.!?])[.!?]++{_CLOSERS}(?=\\s))\\s*+|\\n\\s*+")
_CLAUSE_END = re.compile("[，、；：,;:]+\\s*|\\s+")


def split(text: str, limit: int, overlap: int) -> list[str]:
    """Pieces of at most `limit` characters (code points) that together are `text`; just `[text]` if it fits.

    Every piece but the first begins with the `overlap` characters before it (all there are, if fewer), so that no sentence
    stands without what leads to it. Cut after a sentence; in one that is too long after a clause or a word; in a word as it
    comes. 0 <= overlap < limit.
    """
    assert 0 <= overlap < limit, (limit, overlap)
    pieces = []
    start = 0
    while True:
        lead = max(0, start - overlap)
        end = _cut(text, start, lead + limit)
        pieces.append(text[lead:end])
        if end == len(text):
            return pieces
        start = end


def _cut(text: str, start: int, most: int) -> int:
    """Where the piece that goes on at `start` ends, at most at `most`: never in its first half, which would make many
    pieces of a text with few ends."""
    if most >= len(text):
        return len(text)
    half = start + (most - start + 1) // 2
    for kind in (_SENTENCE_END, _CLAUSE_END):
        # One more character than fits: whether a full stop ends a sentence is told by what follows.
        ends = [end for found in kind.finditer(text, start, most + 1) if half <= (end := min(found.end(), most))]
        if ends:
            return ends[-1]
    return most
