"""How far a session is in Kafka, as one number: all seqs up to it are, or will not come."""

from __future__ import annotations


class Durable:
    """The first seq that is not durable, from what Kafka confirmed.

    A seq that has not come while `lost_after` later ones have is taken as lost, so that a gap holds nothing up for ever.
    """

    def __init__(self, next_seq: int, lost_after: int = 64) -> None:
        self.next_seq = next_seq
        self._lost_after = lost_after
        self._ahead: set[int] = set()

    @property
    def last(self) -> int | None:
        """All up to here are durable; None while the first is not."""
        return self.next_seq - 1 if self.next_seq else None

    def add(self, seq: int) -> None:
        """Kafka has this one."""
        if seq == self.next_seq and not self._ahead:
            self.next_seq += 1
            return
        if seq >= self.next_seq:
            self._ahead.add(seq)
        self._advance()
        while len(self._ahead) > self._lost_after:
            self.next_seq = min(self._ahead)
            self._advance()

    def finish(self) -> None:
        """Nothing follows: what is missing below the highest will not come."""
        if self._ahead:
            self.next_seq = max(self._ahead) + 1
            self._ahead.clear()

    def _advance(self) -> None:
        while self.next_seq in self._ahead:
            self._ahead.discard(self.next_seq)
            self.next_seq += 1
