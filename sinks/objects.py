"""One bucket of an S3 store (R2, or any other): whole objects put, looked at and got, retried while it is away."""

from __future__ import annotations

import asyncio
import base64
import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError, ParamValidationError

from sinks.availability import Availability
from sinks.backoff import Backoff
from sinks.errors import SinkRefused, SinkUnavailable
from sinks.threads import in_thread

T = TypeVar("T")

_CONNECTIONS = 8
_ABSENT = {"404", "NoSuchKey", "NotFound"}
# What is wrong with the request itself. A refused key or a missing bucket is for an operator to put right, and waited
# for; so is a digest that did not match, as the bytes may arrive whole the next time.
_PERMANENT = {
    "EntityTooLarge",
    "InvalidArgument",
    "InvalidDigest",
    "InvalidRequest",
    "KeyTooLongError",
    "NotImplemented",
}


@dataclass(frozen=True)
class BucketAddress:
    """Where the bucket is, and the key pair that opens it. R2 wants the region `auto`."""

    endpoint: str
    bucket: str
    access_key: str
    secret_key: str = field(repr=False)
    region: str = "auto"
    connect_timeout_s: float = 5.0
    read_timeout_s: float = 60.0


@dataclass(frozen=True)
class ObjectInfo:
    """What the store says of an object. The ETag of one that was put whole is the MD5 of its bytes, in hex."""

    size_bytes: int
    etag: str


class Bucket:
    """Reads and writes of one bucket; each call waits for as long as the store is unavailable.

    Raises SinkRefused for a request that can never succeed.
    """

    def __init__(
        self,
        address: BucketAddress,
        backoff: Backoff = Backoff(),
        on_change: Callable[[bool], None] | None = None,
    ) -> None:
        self._name = address.bucket
        self._availability = Availability("objects", on_change)
        self._backoff = backoff
        self._client = _client(address)
        self._slots = asyncio.Semaphore(_CONNECTIONS)

    @property
    def available(self) -> bool:
        """Whether the last request was answered."""
        return self._availability.available

    @property
    def last_error(self) -> str | None:
        """What the newest failed attempt met."""
        return self._availability.last_error

    async def put(self, key: str, data: bytes) -> None:
        """Write an object, its bytes checked by the store; the same key again replaces it."""

        def work() -> None:
            md5 = base64.b64encode(hashlib.md5(data, usedforsecurity=False).digest()).decode()
            self._client.put_object(**self._at(key), Body=data, ContentMD5=md5)

        await self._ask("put", key, work)

    async def head(self, key: str) -> ObjectInfo | None:
        """An object's size and ETag; None if there is none."""

        def work() -> ObjectInfo | None:
            found = self._client.head_object(**self._at(key))
            return ObjectInfo(int(found["ContentLength"]), str(found["ETag"]).strip('"'))

        return await self._ask("head", key, work)

    async def get(self, key: str) -> bytes | None:
        """An object's bytes; None if there is none."""

        def work() -> bytes | None:
            body: bytes = self._client.get_object(**self._at(key))["Body"].read()
            return body

        return await self._ask("get", key, work)

    async def close(self) -> None:
        """Let go of the connections."""
        self._client.close()

    def _at(self, key: str) -> dict[str, str]:
        return {"Bucket": self._name, "Key": key}

    async def _ask(self, verb: str, key: str, work: Callable[[], T]) -> T | None:
        what = f"object store: {verb} {self._name}/{key}"

        async def attempt() -> T | None:
            async with self._slots:
                return await in_thread("objects", lambda: _translated(what, work))

        return await self._availability.wait_for(self._name, attempt, self._backoff)


def _client(address: BucketAddress) -> Any:
    """A client that R2 takes: SigV4, and no CRC trailers, which boto3 would else send over https and R2 has refused."""
    return boto3.session.Session().client(
        "s3",
        endpoint_url=address.endpoint,
        region_name=address.region,
        aws_access_key_id=address.access_key,
        aws_secret_access_key=address.secret_key,
        config=Config(
            signature_version="s3v4",
            request_checksum_calculation="when_required",
            response_checksum_validation="when_required",
            s3={"addressing_style": "path"},
            retries={"mode": "standard", "total_max_attempts": 1},
            max_pool_connections=_CONNECTIONS,
            connect_timeout=address.connect_timeout_s,
            read_timeout=address.read_timeout_s,
        ),
    )


def _translated(what: str, work: Callable[[], T]) -> T | None:
    """The result of `work`, None for an object that is not there; other errors as the sink's two."""
    try:
        return work()
    except ClientError as error:
        code = str(error.response.get("Error", {}).get("Code", ""))
        if code in _ABSENT:
            return None
        if code in _PERMANENT:
            raise SinkRefused(f"{what}: {error}") from error
        raise SinkUnavailable(f"{what}: {error}") from error
    except ParamValidationError as error:
        raise SinkRefused(f"{what}: {error}") from error
    except (BotoCoreError, OSError) as error:
        raise SinkUnavailable(f"{what}: {error}") from error
