"""One bucket of an S3 store: what callers hold."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping
from functools import partial
from typing import Any

from sinks.backoff import Backoff
from sinks.objects.client import BucketAddress
from sinks.objects.records import OpenUpload, UploadState
from sinks.objects.requests import Requests
from sinks.objects.upload import Upload
from sinks.objects.whole import WholeObjects, answered_at


class Bucket(WholeObjects):
    """Reads and writes of one bucket; each call waits for as long as the store is unavailable.

    Raises SinkRefused for a request that can never succeed. Made inside a running event loop.
    """

    def __init__(
        self,
        address: BucketAddress,
        backoff: Backoff = Backoff(),
        on_change: Callable[[bool], None] | None = None,
    ) -> None:
        super().__init__(Requests(address, backoff, on_change))

    @property
    def requests(self) -> Requests:
        """What asks the store, for those who ask it something else (see `sinks.presign`)."""
        return self._requests

    @property
    def available(self) -> bool:
        """Whether the last request was answered."""
        return self._requests.availability.available

    @property
    def last_error(self) -> str | None:
        """What the newest failed attempt met."""
        return self._requests.availability.last_error

    async def upload(
        self,
        key: str,
        part_bytes: int,
        content_type: str | None = None,
        metadata: Mapping[str, str] | None = None,
        resume: UploadState | None = None,
    ) -> Upload:
        """An object to be sent in equal parts of `part_bytes` (5 MiB to 5 GiB), going on from `resume` where it can.

        Nothing is asked of the store before the first part, unless there is something to resume.
        """
        upload = Upload(self._requests, self, key, part_bytes, content_type, metadata)
        if resume is not None:
            await upload.resume(resume)
        return upload

    async def list_uploads(self, prefix: str = "", page: int = 1_000) -> AsyncIterator[OpenUpload]:
        """The uploads below `prefix` that were begun and not ended; `page` a request."""
        which: dict[str, Any] = {"Bucket": self._requests.bucket, "Prefix": prefix, "MaxUploads": page}
        while True:
            work = partial(self._client.list_multipart_uploads, **which)
            found = await self._requests.find("list uploads of", prefix, work)
            if found is None:
                # rclone answers NoSuchUpload where there has never been one.
                return
            for entry in found.get("Uploads", ()):
                age_s = max(0.0, (answered_at(found) - entry["Initiated"]).total_seconds())
                yield OpenUpload(str(entry["Key"]), str(entry["UploadId"]), age_s)
            if not found.get("IsTruncated"):
                return
            which |= {"KeyMarker": found["NextKeyMarker"], "UploadIdMarker": found["NextUploadIdMarker"]}

    async def abort_uploads(self, prefix: str, older_than_s: float) -> list[OpenUpload]:
        """Abort the uploads below `prefix` that were begun longer ago than that; these are returned."""
        old = [upload async for upload in self.list_uploads(prefix) if upload.age_s > older_than_s]
        for upload in old:
            await self.abort_upload(upload.key, upload.upload_id)
        return old

    async def abort_upload(self, key: str, upload_id: str) -> None:
        """Give an upload up, and its parts back to the store; nothing happens if there is none."""
        which = {**self._at(key), "UploadId": upload_id}
        await self._requests.find("abort", key, partial(self._client.abort_multipart_upload, **which))

    async def close(self) -> None:
        """Let go of the connections."""
        self._client.close()
