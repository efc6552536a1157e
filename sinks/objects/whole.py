"""Whole objects: put and verified, looked at, read whole or block by block, listed, deleted."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from functools import partial
from itertools import islice
from typing import Any

from botocore.exceptions import ClientError

from sinks.errors import SinkMismatch, SinkRefused, SinkUnavailable
from sinks.objects.parts import content_md5, md5_hex
from sinks.objects.records import ObjectInfo
from sinks.objects.requests import Requests, refusal

BLOCK_BYTES = 4 << 20
_DELETES_MAX = 1_000


class ObjectMissing(SinkRefused):
    """There is no object of this key to read."""


class ObjectChanged(SinkUnavailable):
    """An object was replaced or removed while it was read; reading it from the start gives the new one."""


@dataclass(frozen=True)
class _Block:
    """A range of an object; `size_bytes` is of the whole."""

    data: bytes
    etag: str
    size_bytes: int


class WholeObjects:
    """The whole objects of one bucket; each call waits for as long as the store is unavailable.

    Raises SinkRefused for a request that can never succeed.
    """

    def __init__(self, requests: Requests) -> None:
        self._requests = requests
        self._client = requests.client
        self._at = requests.at

    async def put(
        self,
        key: str,
        data: bytes,
        content_type: str | None = None,
        md5: str | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> None:
        """Write an object, its bytes checked by the store; the same key again replaces it.

        `md5` (hex) is what the caller holds the bytes to be: SinkRefused if they are not. `metadata` is ASCII.
        """
        await self._put(key, data, md5, attributes(content_type, metadata))

    async def put_verified(
        self,
        key: str,
        data: bytes,
        content_type: str | None = None,
        md5: str | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> ObjectInfo:
        """`put`, then look: SinkMismatch unless the store holds that many bytes of that MD5."""
        sum_ = await self._put(key, data, md5, attributes(content_type, metadata))
        found = await self.head(key)
        if found != ObjectInfo(len(data), sum_):
            raise mismatch(self._requests.what("put", key), (len(data), sum_), found)
        return found

    async def head(self, key: str) -> ObjectInfo | None:
        """What the store says of an object; None if there is none."""

        def work() -> ObjectInfo:
            return _info(key, self._client.head_object(**self._at(key)))

        return await self._requests.find("head", key, work)

    async def get(self, key: str) -> bytes | None:
        """An object's bytes; None if there is none."""

        def work() -> bytes:
            body: bytes = self._client.get_object(**self._at(key))["Body"].read()
            return body

        return await self._requests.find("get", key, work)

    async def get_range(self, key: str, start: int, end: int) -> bytes | None:
        """The bytes `[start:end]` of an object, as a slice would give them; None if there is none."""
        block = await self._block(key, start, end)
        return None if block is None else block.data

    async def read(self, key: str, block_bytes: int = BLOCK_BYTES) -> AsyncIterator[bytes]:
        """An object's bytes in blocks of `block_bytes`, the last one shorter; only one is in memory at a time.

        Raises ObjectMissing, and ObjectChanged if the object does not stay the same until its end.
        """
        start, size_bytes, etag = 0, 1, None
        while start < size_bytes:
            block = await self._block(key, start, start + block_bytes)
            if etag is None:
                if block is None:
                    raise ObjectMissing(f"{self._requests.what('read', key)}: there is no such object")
                size_bytes, etag = block.size_bytes, block.etag
            elif block is None or not block.data or (block.size_bytes, block.etag) != (size_bytes, etag):
                raise ObjectChanged(f"{self._requests.what('read', key)}: it was replaced or removed while it was read")
            start += len(block.data)
            if block.data:
                yield block.data
            # Not held beside the next one.
            del block

    async def delete(self, key: str) -> None:
        """Remove an object; nothing happens if there is none."""
        await self._requests.find("delete", key, lambda: self._client.delete_object(**self._at(key)))

    async def delete_many(self, keys: Iterable[str]) -> None:
        """Remove objects, up to 1,000 a request; those that are not there are passed over."""
        for batch in _batches(keys, _DELETES_MAX):
            await self._requests.ask("delete", f"{batch[0]} and {len(batch) - 1} more", partial(self._delete, batch))

    async def list(self, prefix: str = "", page: int = 1_000) -> AsyncIterator[ObjectInfo]:
        """The objects whose keys begin with `prefix`, in the order of their keys; `page` a request."""
        which: dict[str, Any] = {"Bucket": self._requests.bucket, "Prefix": prefix, "MaxKeys": page}
        while True:
            found = await self._requests.ask("list", prefix, partial(self._client.list_objects_v2, **which))
            now_ms = answered_at(found).timestamp() * 1000
            for entry in found.get("Contents", ()):
                info = _info(entry["Key"], entry)
                yield replace(info, age_s=max(0.0, (now_ms - info.modified_ms) / 1000))
            if not found.get("IsTruncated"):
                return
            which["ContinuationToken"] = found["NextContinuationToken"]

    async def _put(self, key: str, data: bytes, md5: str | None, headers: Mapping[str, Any]) -> str:
        """Returns the MD5 that was sent along."""

        def work() -> str:
            found = md5_hex(data)
            if md5 is not None and md5.lower() != found:
                raise SinkRefused(f"{self._requests.what('put', key)}: the data has MD5 {found}, not {md5} as told")
            self._client.put_object(**self._at(key), **headers, Body=data, ContentMD5=content_md5(found))
            return found

        return await self._requests.ask("put", key, work)

    async def _block(self, key: str, start: int, end: int) -> _Block | None:
        assert 0 <= start < end, f"no range: {start} to {end}"

        def work() -> _Block:
            try:
                found = self._client.get_object(**self._at(key), Range=f"bytes={start}-{end - 1}")
            except ClientError as error:
                if error.response["Error"].get("Code") == "InvalidRange":
                    # The object ends before `start`.
                    return _Block(b"", "", 0)
                raise
            data: bytes = found["Body"].read()
            if "ContentRange" not in found:
                # The server took no notice of the range.
                return _Block(data[start:end], _etag(found), len(data))
            return _Block(data, _etag(found), int(found["ContentRange"].rpartition("/")[2]))

        return await self._requests.find("get", key, work)

    def _delete(self, keys: tuple[str, ...]) -> None:
        # XML cannot carry control characters, so that a key with one goes in a request of its own.
        plain = [key for key in keys if key.isprintable()]
        for key in set(keys).difference(plain):
            self._client.delete_object(**self._at(key))
        if not plain:
            return
        wanted = {"Objects": [{"Key": key} for key in plain], "Quiet": True}
        answer = self._client.delete_objects(Bucket=self._requests.bucket, Delete=wanted)
        for failed in answer.get("Errors", ()):
            code = str(failed.get("Code", ""))
            if code != "NoSuchKey":
                what = self._requests.what("delete", str(failed.get("Key")))
                raise refusal(f"{what}: {code}: {failed.get('Message')}", code)


def attributes(content_type: str | None, metadata: Mapping[str, str] | None) -> dict[str, Any]:
    """The parameters of an object's own headers."""
    headers: dict[str, Any] = {"ContentType": content_type} if content_type else {}
    return {**headers, "Metadata": dict(metadata)} if metadata else headers


def answered_at(answer: Mapping[str, Any]) -> datetime:
    """The store's clock as its answer shows it, this machine's if it shows none."""
    date = answer["ResponseMetadata"]["HTTPHeaders"].get("date")
    return parsedate_to_datetime(date) if date else datetime.now(UTC)


def mismatch(what: str, written: tuple[int, str], found: ObjectInfo | None) -> SinkMismatch:
    """The error for an object that is not what was written: `written` is its size and sum."""
    holds = f"{found.size_bytes:,} bytes of sum {found.etag}" if found else "nothing"
    size_bytes, sum_ = written
    return SinkMismatch(
        f"{what}: {size_bytes:,} bytes of sum {sum_} were written, the store holds {holds}. "
        "Keep what they were made of, and write them again."
    )


def _info(key: str, found: Mapping[str, Any]) -> ObjectInfo:
    """An answer to HEAD, or an entry of a listing."""
    return ObjectInfo(
        int(found["ContentLength"] if "ContentLength" in found else found["Size"]),
        _etag(found),
        key,
        round(found["LastModified"].timestamp() * 1000),
        content_type=found.get("ContentType"),
        # Some servers write the names as Go writes headers.
        metadata={name.lower(): value for name, value in found.get("Metadata", {}).items()},
    )


def _etag(found: Mapping[str, Any]) -> str:
    return str(found["ETag"]).strip('"')


def _batches(keys: Iterable[str], size: int) -> Iterator[tuple[str, ...]]:
    rest = iter(keys)
    while batch := tuple(islice(rest, size)):
        yield batch
