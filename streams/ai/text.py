"""What a call has said so far: pieces in their order, in chunks of some kilobytes, so that a flush rewrites only the last."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import msgspec

from topics.ai import Kind

#: Bytes of text at which a chunk is full.
CHUNK_BYTES = 8 << 10


class Piece(NamedTuple):
    """One block. `version` and `number` are of the event that tells it."""

    version: int
    number: int
    at_ms: int
    kind: Kind
    text: str


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(list[Piece]).decode


class Text:
    """The pieces of one attempt. Full chunks are kept as the changelog has them."""

    def __init__(self) -> None:
        self._full: list[bytes] = []
        self._open: list[Piece] = []
        self._open_bytes = 0

    def add(self, piece: Piece) -> int:
        """One more piece; the chunk that it is in."""
        chunk = len(self._full)
        self._open.append(piece)
        self._open_bytes += len(piece.text.encode())
        if self._open_bytes >= CHUNK_BYTES:
            self._full.append(_encode(self._open))
            self._open, self._open_bytes = [], 0
        return chunk

    def chunk(self, number: int) -> bytes | None:
        """A chunk's bytes; None past the last."""
        if number < len(self._full):
            return self._full[number]
        return _encode(self._open) if number == len(self._full) and self._open else None

    @classmethod
    def load(cls, chunks: list[bytes]) -> Text:
        """The text of its chunks, all of them in order."""
        text = cls()
        for data in chunks:
            for piece in _decode(data):
                text.add(piece)
        return text

    @property
    def chunks(self) -> int:
        """How many there are."""
        return len(self._full) + bool(self._open)

    @property
    def nbytes(self) -> int:
        """About the memory that it takes."""
        return sum(map(len, self._full)) + self._open_bytes

    def pieces(self) -> Iterator[Piece]:
        """All pieces in order."""
        for data in self._full:
            yield from _decode(data)
        yield from self._open

    def of(self, kind: Kind) -> str:
        """All text of a kind."""
        return "".join(piece.text for piece in self.pieces() if piece.kind is kind)
