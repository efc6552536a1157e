"""Audio in memory: how much it takes, of which session, and what is let go of first.

A worker's partitions share one `Budget`. A session is admitted when its whole window fits beside what the others were
promised; what it holds beyond its window (segments that the store has not taken yet) is held while there is room, and read
from the log again otherwise.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from weakref import WeakSet

#: Bytes that a chunk takes beside its audio. 135 to 158 by tracemalloc (CPython 3.11, 500 to 60,000 chunks of a session): the
#: header and rounding of a bytes object, an entry of `Buffer.data` and one of `Buffer.stored`, each with a seq of its own.
#: Besides, 40 in `Pending` until it is cut.
CHUNK_OVERHEAD = 200


def memory_of(data: bytes) -> int:
    """Bytes that a chunk takes in memory."""
    return len(data) + CHUNK_OVERHEAD


@dataclass
class Buffer:
    """One session's bytes; `size` is the memory that they take, `reserved` what was promised. `stored` are the seqs whose
    bytes are only kept for the window, oldest first."""

    reserved: int
    data: dict[int, bytes] = field(default_factory=dict)
    size: int = 0
    stored: deque[int] = field(default_factory=deque)


@dataclass
class Unit:
    """The bytes of an intended segment, in the order of their cutting. `busy` while they are on their way to the store."""

    session_id: str
    first_seq: int
    last_seq: int
    cut_ms: int
    busy: bool = False


class Budget:
    """The memory for audio of all partitions of a worker, bytes."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.dropped = 0  # segments whose bytes were let go of before they were stored
        self._shelves: WeakSet[Shelf] = WeakSet()
        self._spare = 0  # at least so many bytes are free, as far as is known

    @property
    def held(self) -> int:
        """Bytes that all audio in memory takes."""
        return sum(shelf.held for shelf in self._shelves)

    def grown(self, size: int) -> None:
        """So much more is held. All is counted, and room made, only when what was spare at the last count is used up."""
        self._spare -= size
        if self._spare < 0:
            self.relieve()
            self._spare = self.capacity - self.held

    @property
    def reserved(self) -> int:
        """Bytes promised to admitted sessions."""
        return sum(shelf.reserved for shelf in self._shelves)

    def join(self, shelf: Shelf) -> None:
        """Count a partition's shelf in."""
        self._shelves.add(shelf)

    def relieve(self) -> None:
        """While more is held than there is room for: let go of windows first, then of the oldest unstored segments."""
        while self.held > self.capacity:
            if any(shelf.drop_windows() for shelf in list(self._shelves)):
                continue
            units = [(unit.cut_ms, unit.session_id, shelf) for shelf in self._shelves for unit in shelf.idle_units()]
            if not units:
                return
            *_, shelf = min(units, key=lambda found: found[:2])
            shelf.drop_oldest()
            self.dropped += 1


class Shelf:
    """The audio that one partition's fold holds; `held` is the memory that it takes, bytes."""

    def __init__(self, budget: Budget) -> None:
        self.held = 0
        self.reserved = 0
        self._budget = budget
        self._buffers: dict[str, Buffer] = {}
        self._units: dict[tuple[str, int], Unit] = {}
        budget.join(self)

    def admit(self, session_id: str, size: int) -> bool:
        """Promise a session `size` bytes; False when they are not there to promise."""
        assert session_id not in self._buffers
        if self._budget.reserved + size > self._budget.capacity:
            return False
        self._buffers[session_id] = Buffer(size)
        self.reserved += size
        return True

    def admitted(self, session_id: str) -> bool:
        """Whether a session's bytes are held."""
        return session_id in self._buffers

    def put(self, session_id: str, seq: int, data: bytes) -> None:
        """Hold a chunk's bytes, if the session was admitted; its window moves on."""
        buffer = self._buffers.get(session_id)
        if buffer is None or seq in buffer.data:
            return
        buffer.data[seq] = data
        self._grow(buffer, memory_of(data))
        self._trim(buffer)
        self._budget.grown(memory_of(data))

    def has(self, session_id: str, first_seq: int, last_seq: int) -> bool:
        """Whether all bytes of a range are here."""
        buffer = self._buffers.get(session_id)
        return buffer is not None and all(map(buffer.data.__contains__, range(first_seq, last_seq + 1)))

    def bytes_of(self, session_id: str, first_seq: int, last_seq: int) -> list[bytes] | None:
        """A range's chunks in their order; None when some are not here."""
        buffer = self._buffers.get(session_id)
        if buffer is None or not self.has(session_id, first_seq, last_seq):
            return None
        return [buffer.data[seq] for seq in range(first_seq, last_seq + 1)]

    def intend(self, session_id: str, first_seq: int, last_seq: int, cut_ms: int) -> None:
        """A range is to be stored: from now on its bytes may be let go of, as the last."""
        if self.has(session_id, first_seq, last_seq):
            self._units[session_id, first_seq] = Unit(session_id, first_seq, last_seq, cut_ms)
        else:
            # In parts it is of no use: all of it will be read from the log.
            self._drop(session_id, first_seq, last_seq)

    def intended(self, session_id: str, first_seq: int) -> bool:
        """Whether the bytes of an intended segment are here."""
        return (session_id, first_seq) in self._units

    def busy(self, session_id: str, first_seq: int, busy: bool) -> None:
        """Say whether an intended segment's bytes are in use."""
        unit = self._units.get((session_id, first_seq))
        if unit is not None:
            unit.busy = busy

    def settle(self, session_id: str, first_seq: int, last_seq: int, keep: bool) -> None:
        """A range has its outcome: its bytes stay for the window if `keep`, and go otherwise."""
        self._units.pop((session_id, first_seq), None)
        buffer = self._buffers.get(session_id)
        if buffer is None:
            return
        if not keep:
            self._drop(session_id, first_seq, last_seq)
            return
        buffer.stored.extend(filter(buffer.data.__contains__, range(first_seq, last_seq + 1)))
        self._trim(buffer)

    def end(self, session_id: str) -> None:
        """Nothing more comes: what is only kept for the window goes."""
        buffer = self._buffers.get(session_id)
        if buffer is not None:
            self._shed(buffer)

    def release(self, session_id: str) -> None:
        """Take back the promise, and let go of all that is held."""
        buffer = self._buffers.pop(session_id, None)
        if buffer is not None:
            self.held -= buffer.size
            self.reserved -= buffer.reserved
            for key in [key for key in self._units if key[0] == session_id]:
                del self._units[key]

    def close(self) -> None:
        """The partition is given up."""
        for session_id in list(self._buffers):
            self.release(session_id)

    def held_by(self, session_id: str) -> int:
        """Memory that one session takes."""
        buffer = self._buffers.get(session_id)
        return 0 if buffer is None else buffer.size

    def window(self, session_id: str) -> list[tuple[int, bytes]]:
        """All that is held of a session, by seq."""
        buffer = self._buffers.get(session_id)
        return [] if buffer is None else sorted(buffer.data.items())

    def idle_units(self) -> Iterator[Unit]:
        """Intended segments whose bytes nobody uses."""
        return (unit for unit in self._units.values() if not unit.busy)

    def drop_windows(self) -> bool:
        """Let go of all that is only kept for windows; whether there was any."""
        before = self.held
        for buffer in self._buffers.values():
            self._shed(buffer)
        return self.held < before

    def drop_oldest(self) -> None:
        """Let go of the oldest intended segment's bytes."""
        unit = min(self.idle_units(), key=lambda unit: (unit.cut_ms, unit.session_id))
        del self._units[unit.session_id, unit.first_seq]
        self._drop(unit.session_id, unit.first_seq, unit.last_seq)

    def _shed(self, buffer: Buffer) -> None:
        self._let_go(buffer, buffer.stored)
        buffer.stored.clear()

    def _drop(self, session_id: str, first_seq: int, last_seq: int) -> None:
        buffer = self._buffers.get(session_id)
        if buffer is not None:
            self._let_go(buffer, range(first_seq, last_seq + 1))

    def _trim(self, buffer: Buffer) -> None:
        while buffer.size > buffer.reserved and buffer.stored:
            self._let_go(buffer, (buffer.stored.popleft(),))

    def _let_go(self, buffer: Buffer, which: Iterable[int]) -> None:
        data = buffer.data
        self._grow(buffer, -sum(memory_of(data.pop(seq)) for seq in which if seq in data))

    def _grow(self, buffer: Buffer, size: int) -> None:
        buffer.size += size
        self.held += size
