"""Asking the owner of a session's partition: the worker that folds it, found by its announcement."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Protocol
from urllib.parse import quote

import msgspec
from aiohttp import ClientError, ClientSession, ClientTimeout

from streams.web.publisher import Place
from topics.audio import Open
from topics.partitioning import partition_of

_PAUSE_S, _PAUSE_MAX_S = 0.02, 0.5


class OwnerAway(Exception):
    """The owner did not answer in time, or has not come as far as was asked for."""


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


@dataclass(frozen=True)
class Answer:
    """What the owner's endpoint said."""

    status: int
    body: bytes
    content_type: str
    headers: dict[str, str]


class AudioOwners:
    """Asks owners over HTTP. `url_of` gives the owner's address by partition, `partitions` their number."""

    def __init__(
        self,
        url_of: Callable[[int], str | None],
        partitions: Callable[[], Awaitable[int]],
        timeout_s: float = 5.0,
    ) -> None:
        self._url_of = url_of
        self._partitions = partitions
        self._timeout = ClientTimeout(total=timeout_s)
        self._client: ClientSession | None = None

    async def close(self) -> None:
        """Let go of the connections."""
        if self._client is not None:
            await self._client.close()

    async def state(self, session_id: str, after: Place, within_s: float) -> SessionState:
        """See `SessionOwner`."""
        pause_s, trouble = _PAUSE_S, "nothing was asked yet"
        try:
            async with asyncio.timeout(within_s):
                while True:
                    try:
                        answer = await self._get(after.partition, f"/audio/{quote(session_id, safe='')}")
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
        try:
            partitions = await self._partitions()
        except Exception as error:
            raise OwnerAway(f"Kafka does not say who owns the session: {error}") from None
        partition = partition_of(session_id.encode(), partitions)
        return await self._get(partition, f"/audio/{quote(session_id, safe='')}{path}")

    async def _get(self, partition: int, path: str) -> Answer:
        url = self._url_of(partition)
        if url is None:
            raise OwnerAway(f"no worker has announced itself for audio partition {partition}")
        if self._client is None:
            self._client = ClientSession(timeout=self._timeout)
        try:
            async with self._client.get(url + path) as answer:
                body = await answer.read()
                return Answer(answer.status, body, answer.content_type, dict(answer.headers))
        except (ClientError, TimeoutError, OSError) as error:
            raise OwnerAway(f"its worker at {url} does not answer ({type(error).__name__})") from None
