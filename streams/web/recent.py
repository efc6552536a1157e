"""What a gateway has submitted lately: it answers for it until its owner has read it, and compares with it what comes under
the same idempotency key while its owner is silent."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

from streams.web.publisher import Place

Submit = TypeVar("Submit")


@dataclass(eq=False)
class Kept(Generic[Submit]):
    """One that was submitted; `place` is there once Kafka has it."""

    id: str
    submit: Submit
    size_bytes: int
    since_s: float
    place: Place | None = None


class Recent(Generic[Submit]):
    """The newest submissions, at most `most` of them, of which each takes `size_of` and all together `bytes_max` bytes. They
    are compared with for `compared_s`."""

    def __init__(
        self, size_of: Callable[[Submit], int], *, most: int, bytes_max: int, compared_s: float = 24 * 3600.0
    ) -> None:
        self._size_of = size_of
        self._most = most
        self._bytes_max = bytes_max
        self._compared_s = compared_s
        self._kept: OrderedDict[str, Kept[Submit]] = OrderedDict()
        self._bytes = 0

    def remember(self, id_: str, submit: Submit, place: Place | None = None) -> Kept[Submit]:
        """Keep one, as the newest; it takes the place of one with the same id."""
        if (earlier := self._kept.get(id_)) is not None:
            self.forget(earlier)
        kept = self._kept[id_] = Kept(id_, submit, self._size_of(submit), time.monotonic(), place)
        self._bytes += kept.size_bytes
        while len(self._kept) > self._most or self._bytes > self._bytes_max:
            self.forget(next(iter(self._kept.values())))
        return kept

    def forget(self, kept: Kept[Submit]) -> None:
        """Let go of one, unless another has taken its place."""
        if self._kept.get(kept.id) is kept:
            self._bytes -= self._kept.pop(kept.id).size_bytes

    def get(self, id_: str) -> Kept[Submit] | None:
        """One that is young enough to compare with."""
        kept = self._kept.get(id_)
        return kept if kept is not None and time.monotonic() - kept.since_s < self._compared_s else None

    def unread(self, id_: str, applied: int) -> Submit | None:
        """What was submitted, if its owner, which has read up to `applied`, has not come to it."""
        kept = self._kept.get(id_)
        if kept is None or (kept.place is not None and kept.place.offset < applied):
            return None
        return kept.submit
