"""Who follows which task at this gateway, and what they are handed of `ai.results.v1`."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager

from topics.ai_events import TaskEvent, decode_event
from topics.malformed import Malformed

#: Events that wait for a follower; one that is further behind asks the task's owner again.
_WAITING_MAX = 256


class Follower:
    """Hears of one task. `behind`: something was dropped, or nothing follows."""

    def __init__(self) -> None:
        self.behind = False
        self.stopped = False
        self._waiting: deque[TaskEvent] = deque()
        self._bell = asyncio.Event()

    def note(self, event: TaskEvent) -> None:
        """One more event."""
        if len(self._waiting) < _WAITING_MAX:
            self._waiting.append(event)
        else:
            self.behind = True
        self._bell.set()

    def stop(self) -> None:
        """The gateway stops."""
        self.stopped = True
        self._bell.set()

    async def next(self, within_s: float) -> TaskEvent | None:
        """The next event; None when none came in time, or the gateway stops."""
        if not self._waiting and not self.stopped:
            self._bell.clear()
            try:
                async with asyncio.timeout(within_s):
                    await self._bell.wait()
            except TimeoutError:
                return None
        return self._waiting.popleft() if self._waiting else None

    def catch_up(self) -> None:
        """Its owner is asked: what waits comes from there."""
        self.behind = False
        self._waiting.clear()


class Followers:
    """All of one gateway, by task."""

    def __init__(self) -> None:
        self._of: dict[str, list[Follower]] = {}

    @contextmanager
    def follow(self, task_id: str) -> Iterator[Follower]:
        """A follower of a task, as long as the context is open."""
        follower = Follower()
        self._of.setdefault(task_id, []).append(follower)
        try:
            yield follower
        finally:
            others = self._of[task_id]
            others.remove(follower)
            if not others:
                del self._of[task_id]

    def note(self, key: bytes, value: bytes | None) -> None:
        """Take one record of `ai.results.v1`; it is only decoded for tasks that are followed here."""
        followers = self._of.get(key.decode("ascii", "replace"))
        if not followers:
            return
        event = decode_event(value)
        if not isinstance(event, Malformed):
            for follower in followers:
                follower.note(event)

    def stop(self) -> None:
        """All are to end: their clients connect again."""
        for followers in self._of.values():
            for follower in followers:
                follower.stop()
