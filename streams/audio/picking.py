"""A segment's chunks, picked again from the records among which they lie, as the fold took them."""

from __future__ import annotations

from streams.audio.effects import PutSegment
from topics import audio
from topics.records import Record


class Picker:
    """Fed the records from `first_offset` to `last_offset` in their order. Of one seq the first fitting record counts."""

    def __init__(self, wanted: PutSegment, chunk_bytes_max: int = audio.MAX_CHUNK_BYTES) -> None:
        self._wanted = wanted
        self._key = wanted.opened.session_id.encode()
        self._chunk_bytes_max = chunk_bytes_max
        self._found: dict[int, bytes] = {}

    def feed(self, record: Record) -> None:
        """Take a record, if it is one of them."""
        wanted = self._wanted
        if record.key != self._key or not wanted.first_offset <= record.offset <= wanted.last_offset:
            return
        chunk = audio.decode(record.key, record.value, record.headers, self._chunk_bytes_max)
        if not isinstance(chunk, audio.Chunk) or not wanted.first_seq <= chunk.seq <= wanted.last_seq:
            return
        if audio.misfit(wanted.opened, chunk.data) is None:
            self._found.setdefault(chunk.seq, chunk.data)

    @property
    def chunks(self) -> list[bytes] | None:
        """All of them by seq; None while some are missing."""
        wanted = range(self._wanted.first_seq, self._wanted.last_seq + 1)
        if len(self._found) < len(wanted):
            return None
        return [self._found[seq] for seq in wanted]
