"""Server-sent events as bytes: the data of each event, out of a stream that comes in any pieces.

After https://html.spec.whatwg.org/multipage/server-sent-events.html#event-stream-interpretation, of which the data is all that
an endpoint of chat completions uses: names, ids and retry times of events are read over.
"""

from __future__ import annotations

#: One event has at most so many bytes; what is held of one that has not ended is bounded by it.
MAX_EVENT_BYTES = 8 << 20
_BOM = b"\xef\xbb\xbf"


class EventDecoder:
    """Holds what of an event has come so far."""

    def __init__(self) -> None:
        self._rest = b""
        self._data: list[bytes] = []
        self._size = 0
        self._begun = False
        self._after_cr = False

    def feed(self, piece: bytes) -> list[bytes]:
        """The data of the events that end in `piece`, in order. Raises ValueError for one that is too large."""
        if self._after_cr and piece.startswith(b"\n"):
            # The second half of a line's end.
            piece = piece[1:]
        if not piece:
            return []
        self._after_cr = piece.endswith(b"\r")
        lines = (self._rest + piece).splitlines(keepends=True)
        self._rest = b"" if lines[-1].endswith((b"\n", b"\r")) else lines.pop()
        events: list[bytes] = []
        for line in lines:
            self._line(line.rstrip(b"\r\n"), events)
        if self._size + len(self._rest) > MAX_EVENT_BYTES:
            raise ValueError(f"an event of the stream has more than {MAX_EVENT_BYTES} bytes")
        return events

    def _line(self, line: bytes, events: list[bytes]) -> None:
        if not self._begun:
            self._begun, line = True, line.removeprefix(_BOM)
        if not line:
            if self._data:
                events.append(b"\n".join(self._data))
            self._data, self._size = [], 0
            return
        name, _, value = line.partition(b":")
        if name == b"data":
            self._data.append(value.removeprefix(b" "))
            self._size += len(value)
