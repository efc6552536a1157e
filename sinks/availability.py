"""Whether a store takes writes: waited for with backoff, logged once a change, shown on status pages."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

import structlog

from sinks.backoff import Backoff
from sinks.errors import SinkUnavailable

log = structlog.get_logger(__name__)
T = TypeVar("T")


class Availability:
    """The state of one store. Each part of it (a table, a bucket) goes down and comes back on its own.

    `on_change` is told when the first part goes down (False) and when the last is back (True).
    """

    def __init__(self, store: str, on_change: Callable[[bool], None] | None = None) -> None:
        self.last_error: str | None = None
        self._store = store
        self._on_change = on_change
        self._down_since: dict[str, float] = {}

    @property
    def available(self) -> bool:
        """Whether no part is down."""
        return not self._down_since

    def down(self, part: str, error: SinkUnavailable) -> None:
        """An attempt on `part` failed."""
        self.last_error = str(error)
        if part in self._down_since:
            return
        log.warning("sink unavailable", store=self._store, part=part, error=str(error))
        self._down_since[part] = time.monotonic()
        if len(self._down_since) == 1 and self._on_change is not None:
            self._on_change(False)

    def up(self, part: str) -> None:
        """An attempt on `part` was answered."""
        since = self._down_since.pop(part, None)
        if since is None:
            return
        log.info("sink available", store=self._store, part=part, after_s=round(time.monotonic() - since, 1))
        if self.available and self._on_change is not None:
            self._on_change(True)

    async def wait_for(self, part: str, attempt: Callable[[], Awaitable[T]], backoff: Backoff) -> T:
        """The result of `attempt`, made again for as long as it raises SinkUnavailable; other errors pass through."""
        failures = 0
        while True:
            try:
                result = await attempt()
            except SinkUnavailable as error:
                self.down(part, error)
                await asyncio.sleep(backoff.delay_s(failures))
                failures += 1
            else:
                self.up(part)
                return result
