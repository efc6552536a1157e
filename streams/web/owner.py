"""Asking the owner of a partition: the worker that folds it, found by its announcement."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from aiohttp import ClientError, ClientSession, ClientTimeout

from topics.partitioning import partition_of


class OwnerAway(Exception):
    """The owner did not answer in time, or has not come as far as was asked for."""


class ArchiveAway(Exception):
    """ClickHouse, which knows what owners have forgotten, cannot be asked now."""


@dataclass(frozen=True)
class Answer:
    """What the owner's endpoint said."""

    status: int
    body: bytes
    content_type: str
    headers: dict[str, str]


class Owners:
    """Asks the owners of one stream over HTTP. `url_of` gives the owner's address by partition, `partitions` their number."""

    def __init__(
        self,
        stream: str,
        url_of: Callable[[int], str | None],
        partitions: Callable[[], Awaitable[int]],
        timeout_s: float = 5.0,
    ) -> None:
        self._stream = stream
        self._url_of = url_of
        self._partitions = partitions
        self._known = 0
        self._timeout = ClientTimeout(total=timeout_s)
        self._client: ClientSession | None = None

    async def close(self) -> None:
        """Let go of the connections."""
        if self._client is not None:
            await self._client.close()

    async def partitions(self) -> int:
        """How many partitions there are; it never changes, so that it is known also when Kafka has gone. Raises OwnerAway."""
        if not self._known:
            try:
                self._known = await self._partitions()
            except Exception as error:
                raise OwnerAway(f"Kafka does not say who owns it: {error}") from None
        return self._known

    async def partition_of(self, key: str) -> int:
        """The partition of a key. Raises OwnerAway."""
        return partition_of(key.encode(), await self.partitions())

    async def about(self, key: str, path: str) -> Answer:
        """What the owner of a key answers of it: 200, or 404 for what it does not know. Raises OwnerAway."""
        answer = await self.get(await self.partition_of(key), path)
        if answer.status not in (200, 404):
            raise OwnerAway(f"its worker is not ready (it answered {answer.status})")
        return answer

    async def get(self, partition: int, path: str) -> Answer:
        """What the owner of a partition answers now. Raises OwnerAway."""
        url = self._url_of(partition)
        if url is None:
            raise OwnerAway(f"no worker has announced itself for {self._stream} partition {partition}")
        if self._client is None:
            self._client = ClientSession(timeout=self._timeout)
        try:
            async with self._client.get(url + path) as answer:
                body = await answer.read()
                return Answer(answer.status, body, answer.content_type, dict(answer.headers))
        except (ClientError, TimeoutError, OSError) as error:
            raise OwnerAway(f"its worker at {url} does not answer ({type(error).__name__})") from None
