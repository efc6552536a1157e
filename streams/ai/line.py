"""The calls of one model that wait for a slot: fair between users, in batches, within the limits.

Fair by tags: a user's next call is tagged one above the user's last that still waits, or above the tag that was granted
last, whichever is higher, and calls are granted in the order of tags. So users take turns, and one who comes late waits
for one turn of the others, not for their queues. What is under way already (a retry, a call whose owner died, a merge) is
tagged with what was granted last: it goes first. Tags are part of the tasks' state, so a restore has the same order.
"""

from __future__ import annotations

import heapq
from collections import defaultdict, deque
from dataclasses import dataclass, field
from typing import NamedTuple

import msgspec

#: A clock that never comes.
NEVER_MS = 1 << 62


class Place(NamedTuple):
    """A waiting call; compared by tag, then by the tasks' order."""

    tag: int
    accepted_version: int
    call: int
    task_id: str


class SavedLine(msgspec.Struct, array_like=True):
    """What a line is beside the tasks in it."""

    granted: int
    released: int
    mean_ms: int
    starts: list[int]


@dataclass
class Line:
    """One model's. `fresh` are pending tasks with their clock of acceptance, `going` the waiting calls of the others;
    `released` is how many of the current batch may still begin; `mean_ms` is the moving mean of a call's duration;
    `starts` are the latest grants, kept while there is a rate to hold; before `look_ms` no call may begin, unless the line
    changes."""

    granted: int = 0
    released: int = 0
    mean_ms: int = 0
    starts: deque[int] = field(default_factory=deque)
    running: int = 0
    look_ms: int = 0
    fresh: dict[str, int] = field(default_factory=dict)
    _fresh: list[Place] = field(default_factory=list)
    _going: list[Place] = field(default_factory=list)
    _waiting: set[Place] = field(default_factory=set)
    _tags: dict[str, dict[int, None]] = field(default_factory=lambda: defaultdict(dict))

    def next_tag(self, user: str) -> int:
        """The tag of a user's next call; it is the user's last from now on."""
        tags = self._tags[user]
        tag = max(self.granted, next(reversed(tags), 0)) + 1
        tags[tag] = None
        return tag

    def keep_tag(self, user: str, tag: int) -> None:
        """A tag as `next_tag` gave it once; in their order."""
        self._tags[user][tag] = None

    def drop_tag(self, user: str, tag: int) -> None:
        """The call that has it waits no longer."""
        tags = self._tags[user]
        tags.pop(tag, None)
        if not tags:
            del self._tags[user]

    def join(self, place: Place, fresh_ms: int | None = None) -> None:
        """A call waits; with `fresh_ms` it is the first of a task that was accepted then."""
        if fresh_ms is not None:
            self.fresh[place.task_id] = fresh_ms
        heapq.heappush(self._going if fresh_ms is None else self._fresh, place)
        self._waiting.add(place)
        self.look_ms = 0

    def leave(self, place: Place) -> None:
        """It waits no longer."""
        self._waiting.discard(place)
        self.look_ms = 0
        if place.call == 0:
            self.fresh.pop(place.task_id, None)
        self.released = min(self.released, len(self.fresh))

    def first_going(self) -> Place | None:
        """The first in turn of the tasks under way."""
        return self._first(self._going)

    def first_fresh(self) -> Place | None:
        """The first in turn of the pending tasks."""
        return self._first(self._fresh)

    @property
    def oldest_ms(self) -> int:
        """The clock at which the longest-waiting pending task was accepted."""
        return next(iter(self.fresh.values()))

    @property
    def waiting(self) -> int:
        """Calls that wait."""
        return len(self._waiting)

    def save(self) -> SavedLine:
        """What is not in the tasks."""
        return SavedLine(self.granted, self.released, self.mean_ms, list(self.starts))

    def _first(self, heap: list[Place]) -> Place | None:
        while heap and heap[0] not in self._waiting:
            heapq.heappop(heap)
        return heap[0] if heap else None


def load(saved: SavedLine) -> Line:
    """A line that nobody has joined yet."""
    return Line(saved.granted, saved.released, saved.mean_ms, deque(saved.starts))
