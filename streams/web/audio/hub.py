"""The audio connections of one gateway, and what they are told of their sessions."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from typing import Protocol

from topics.audio_events import AudioEvent, decode_event
from topics.malformed import Malformed


class Listener(Protocol):
    """A connection of a session."""

    session_id: str

    def note(self, event: AudioEvent) -> None:
        """Something happened to its session."""

    def overtaken(self, offset: int) -> None:
        """Another connection, whose open lies at `offset`, has taken the session over: it yields if its own lies before."""

    def stop(self) -> None:
        """The gateway stops."""


class Hub:
    """Which connection is whose. All of a session hear its events; one that takes over ends the others."""

    def __init__(self) -> None:
        self._of: dict[str, list[Listener]] = defaultdict(list)
        self._empty = asyncio.Event()
        self._empty.set()

    def join(self, listener: Listener) -> None:
        """From here on it hears of its session."""
        self._of[listener.session_id].append(listener)
        self._empty.clear()

    def take_over(self, listener: Listener, offset: int) -> None:
        """End the session's other connections on this gateway that were opened before `offset`."""
        for other in list(self._of[listener.session_id]):
            if other is not listener:
                other.overtaken(offset)

    def leave(self, listener: Listener) -> None:
        """It is over."""
        listeners = self._of.get(listener.session_id, [])
        if listener in listeners:
            listeners.remove(listener)
        if not listeners:
            self._of.pop(listener.session_id, None)
        if not self._of:
            self._empty.set()

    def note(self, key: bytes, value: bytes | None) -> None:
        """Take one record of `audio.segments.v1`; it is only decoded for sessions that are here."""
        listeners = self._of.get(key.decode("ascii", "replace"))
        if not listeners:
            return
        event = decode_event(value)
        if not isinstance(event, Malformed):
            for listener in list(listeners):
                listener.note(event)

    async def stop(self, within_s: float) -> None:
        """Ask all to end, and wait for it."""
        for listeners in list(self._of.values()):
            for listener in list(listeners):
                listener.stop()
        try:
            async with asyncio.timeout(within_s):
                await self._empty.wait()
        except TimeoutError:
            pass
