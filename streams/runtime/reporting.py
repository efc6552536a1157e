"""The part of an `Outside` that all streams share: tasks under way, and records that say what came of them."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

from streams.runtime.outside import Seat
from topics.records import Emit
from topics.typed import Encoded


class Reporting:
    """Effects of one partition under way. A process that gave its partition up reports nothing more."""

    def __init__(self, seat: Seat, topic: str) -> None:
        self._seat = seat
        self._topic = topic
        self._tasks: set[asyncio.Task[None]] = set()
        self._timer: asyncio.TimerHandle | None = None
        self._closed = False

    @property
    def under_way(self) -> int:
        """Effects that have not ended."""
        return len(self._tasks)

    def close(self) -> None:
        """See `Outside`."""
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()
        for task in self._tasks:
            task.cancel()

    def _spawn(self, work: Coroutine[Any, Any, None], name: str) -> asyncio.Task[None]:
        task = asyncio.create_task(self._guarded(work), name=name)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def _report_after(self, after_ms: int, record: Encoded) -> None:
        """Report it when so much time has passed; a later wish replaces it."""
        if self._timer is not None:
            self._timer.cancel()
        self._timer = asyncio.get_running_loop().call_later(after_ms / 1000, lambda: self._report(record))

    def _report(self, record: Encoded) -> None:
        if not self._closed:
            self._seat.report([Emit(self._topic, record.key, record.value, record.headers, self._seat.partition)])

    async def _guarded(self, work: Coroutine[Any, Any, None]) -> None:
        try:
            await work
        except asyncio.CancelledError:
            raise
        except Exception as error:
            self._seat.fail(error)
