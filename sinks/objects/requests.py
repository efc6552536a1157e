"""Requests to one bucket: off the event loop, a few at once, made again while the store is away, errors told apart."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TypeVar

from botocore.exceptions import BotoCoreError, ClientError, ParamValidationError

from sinks.availability import Availability
from sinks.backoff import Backoff
from sinks.errors import SinkRefused, SinkUnavailable
from sinks.objects.client import CONNECTIONS, BucketAddress, s3_client
from sinks.threads import in_thread

T = TypeVar("T")

_ABSENT = {"404", "NoSuchKey", "NoSuchUpload", "NotFound"}
# What is wrong with the request itself. A refused key or a missing bucket is for an operator to put right, and waited
# for; so is a digest that did not match, as the bytes may arrive whole the next time.
_PERMANENT = {
    # Of HEAD, whose answer has no body that would say more: a key that this server cannot have.
    "400",
    "EntityTooLarge",
    "EntityTooSmall",
    "InvalidArgument",
    "InvalidDigest",
    "InvalidPart",
    "InvalidPartOrder",
    "InvalidRequest",
    "KeyTooLongError",
    "MalformedXML",
    "MetadataTooLarge",
    "NotImplemented",
}


class Requests:
    """What asks the store. `work` is a blocking call of `client`; it may run again, so it must be idempotent."""

    def __init__(
        self, address: BucketAddress, backoff: Backoff, on_change: Callable[[bool], None] | None = None
    ) -> None:
        self.bucket = address.bucket
        self.client = s3_client(address)
        self.availability = Availability("objects", on_change)
        self._backoff = backoff
        self._slots = asyncio.Semaphore(CONNECTIONS)

    def at(self, key: str) -> dict[str, str]:
        """The parameters that name an object."""
        return {"Bucket": self.bucket, "Key": key}

    def what(self, verb: str, key: str) -> str:
        """How messages begin."""
        return f"object store: {verb} {self.bucket}/{key}"

    async def ask(self, verb: str, key: str, work: Callable[[], T]) -> T:
        """The result of `work`. Raises SinkRefused for a request that can never succeed."""
        what = self.what(verb, key)
        return await self._answered(lambda: _translated(what, work))

    async def find(self, verb: str, key: str, work: Callable[[], T]) -> T | None:
        """As `ask`, and None if the object or upload that the request names is not there."""
        what = self.what(verb, key)

        def found() -> T | None:
            try:
                return _translated(what, work)
            except _Absent:
                return None

        return await self._answered(found)

    async def _answered(self, work: Callable[[], T]) -> T:
        async def attempt() -> T:
            async with self._slots:
                return await in_thread("objects", work)

        return await self.availability.wait_for(self.bucket, attempt, self._backoff)


class _Absent(SinkUnavailable):
    """What is named is not there. For a write that means a wrong address, which is waited for as a missing bucket is."""


def refusal(message: str, code: str) -> SinkRefused | SinkUnavailable:
    """The sink's error for an error code of the store."""
    return SinkRefused(message) if code in _PERMANENT else SinkUnavailable(message)


def _translated(what: str, work: Callable[[], T]) -> T:
    """The result of `work`, errors as the sink's own."""
    try:
        return work()
    except ClientError as error:
        code = str(error.response.get("Error", {}).get("Code", ""))
        if code in _ABSENT:
            raise _Absent(f"{what}: {error}") from error
        raise refusal(f"{what}: {error}", code) from error
    except ParamValidationError as error:
        raise SinkRefused(f"{what}: {error}") from error
    except (BotoCoreError, OSError) as error:
        raise SinkUnavailable(f"{what}: {error}") from error
