"""What one connection has handed to Kafka, in its order, and how far all of it is there."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from streams.web.audio.durable import Durable
from streams.web.audio.parts import AudioLog, SocketLimits
from streams.web.metrics import AudioMetrics
from streams.web.publisher import HeadedRecord, Place, PublishUnavailable


class Uplink:
    """Sends records as they come; nobody waits for a single one.

    `durable` is called with the newest seq up to which Kafka has all, once for all that was confirmed together; `failed`
    once, with what Kafka did not confirm.
    """

    def __init__(
        self,
        log: AudioLog,
        limits: SocketLimits,
        metrics: AudioMetrics,
        durable: Callable[[int], None],
        failed: Callable[[PublishUnavailable], None],
    ) -> None:
        self._log = log
        self._limits = limits
        self._seconds = metrics.durable_seconds
        self._tell_durable = durable
        self._tell_failed = failed
        self._durable: Durable | None = None
        self._told = -1
        self._telling = False
        self._unconfirmed = 0
        self._failed = False
        self._changed = asyncio.Event()

    @property
    def begun(self) -> bool:
        """Whether it is known from which seq the session goes on."""
        return self._durable is not None

    @property
    def full(self) -> bool:
        """Whether so much waits for Kafka, of this connection or of all, that no more is to be read."""
        return not self._failed and (self._unconfirmed >= self._limits.unconfirmed_bytes or self._log.crowded)

    def begin(self, next_seq: int) -> None:
        """All below `next_seq` is there."""
        self._durable = Durable(next_seq, self._limits.lost_after)
        self._told = next_seq - 1

    def send(self, record: HeadedRecord, seq: int | None) -> None:
        """Hand a record to Kafka, if all before it could be; `seq` None is the close."""
        if self._failed:
            return
        # A close has no bytes, and is waited for as a chunk is.
        size, since_s = max(1, len(record[1])), time.monotonic()
        self._unconfirmed += size

        def told(found: Place | PublishUnavailable) -> None:
            self._unconfirmed -= size
            if isinstance(found, PublishUnavailable):
                self._fail(found)
            else:
                self._confirmed(seq, since_s)
            self._changed.set()

        self._log.post(record, told)

    async def changed(self) -> None:
        """Wait until something was confirmed, or cannot be, or there is room again."""
        self._changed.clear()
        if self._log.crowded:
            self._log.when_room(self.wake)
        await self._changed.wait()

    def wake(self) -> None:
        """End a `changed` now."""
        self._changed.set()

    async def settled(self) -> None:
        """Wait until what was sent is confirmed, or cannot be; for a while."""
        try:
            async with asyncio.timeout(self._limits.write_s):
                while self._unconfirmed and not self._failed:
                    await self.changed()
        except TimeoutError:
            return
        self._say()

    def _fail(self, error: PublishUnavailable) -> None:
        if not self._failed:
            self._failed = True
            self._tell_failed(error)

    def _confirmed(self, seq: int | None, since_s: float) -> None:
        assert self._durable is not None
        if seq is None:
            self._durable.finish()
        else:
            self._seconds.observe(time.monotonic() - since_s)
            self._durable.add(seq)
        if not self._telling:
            # After those that were confirmed in the same batch.
            self._telling = True
            asyncio.get_running_loop().call_soon(self._say)

    def _say(self) -> None:
        self._telling = False
        last = self._durable.last if self._durable is not None else None
        if last is not None and last > self._told:
            self._told = last
            self._tell_durable(last)
