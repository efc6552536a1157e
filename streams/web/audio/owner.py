"""Asking the owner of a session's partition: the worker that folds it, found by its announcement."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Protocol
from urllib.parse import quote

import msgspec

from streams.web.owner import Answer, OwnerAway, Owners
from streams.web.publisher import Place
from topics.audio import Open

_PAUSE_S, _PAUSE_MAX_S = 0.02, 0.5


class SessionState(msgspec.Struct, frozen=True):
    """What the owner says of a session, as far as a connection needs it. `status` `unknown`: there is none.

    The owner has folded all records below `applied`.
    """

    status: str
    applied: int
    next_seq: int = 0
    stored_seq: int | None = None
    user: str | None = None
    format: str | None = None
    rate: int | None = None
    channels: int | None = None
    tier: str | None = None
    store: str | None = None
    recording: str | None = None
    md5: str | None = None
    error: str = ""

    def differs_from(self, opened: Open) -> list[str]:
        """The names of what the session was opened with otherwise."""
        if self.status == "unknown":
            return []
        return [name for name in opened.__struct_fields__[1:] if getattr(self, name) != getattr(opened, name)]


class SessionOwner(Protocol):
    """Who knows a session's state."""

    async def state(self, session_id: str, after: Place, within_s: float) -> SessionState:
        """The session once the record at `after` is folded. Raises OwnerAway past `within_s`."""


class AudioOwners:
    """Asks owners over HTTP. `url_of` gives the owner's address by partition, `partitions` their number."""

    def __init__(
        self,
        url_of: Callable[[int], str | None],
        partitions: Callable[[], Awaitable[int]],
        timeout_s: float = 5.0,
    ) -> None:
        self._owners = Owners("audio", url_of, partitions, timeout_s)

    async def close(self) -> None:
        """Let go of the connections."""
        await self._owners.close()

    async def state(self, session_id: str, after: Place, within_s: float) -> SessionState:
        """See `SessionOwner`."""
        pause_s, trouble = _PAUSE_S, "nothing was asked yet"
        try:
            async with asyncio.timeout(within_s):
                while True:
                    try:
                        answer = await self._owners.get(after.partition, f"/audio/{quote(session_id, safe='')}")
                        if answer.status in (200, 404):
                            state = msgspec.json.decode(answer.body, type=SessionState)
                            if state.applied > after.offset:
                                return state
                            trouble = f"it has read up to {state.applied}, and the connection began at {after.offset}"
                        else:
                            trouble = f"it answered {answer.status}"
                    except OwnerAway as error:
                        trouble = str(error)
                    await asyncio.sleep(pause_s)
                    pause_s = min(_PAUSE_MAX_S, pause_s * 1.5)
        except TimeoutError:
            raise OwnerAway(f"the worker of audio partition {after.partition} is not there yet: {trouble}") from None

    async def get(self, session_id: str, path: str = "") -> Answer:
        """What the session's owner answers now. Raises OwnerAway."""
        partition = await self._owners.partition_of(session_id)
        return await self._owners.get(partition, f"/audio/{quote(session_id, safe='')}{path}")
