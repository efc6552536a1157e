"""The bucket as the file stream asks for it."""

from __future__ import annotations

from collections.abc import Awaitable
from typing import TypeVar

from sinks.errors import SinkMismatch, SinkRefused
from sinks.objects import Bucket, ObjectInfo, UploadLost, multipart_etag
from sinks.presign import Presigner
from streams.files.converting import CACHE_CONTROL
from streams.files.job import Upload
from streams.files.store import Signed, StoreRefused, UploadGone

T = TypeVar("T")


class BucketFileStore:
    """Implements `streams.files.store.FileStore`. URLs are good for `expires_s`; a result of up to `result_bytes` goes in
    parts of `part_bytes`."""

    def __init__(
        self, bucket: Bucket, presigner: Presigner, *, expires_s: int, part_bytes: int, result_bytes: int
    ) -> None:
        self._bucket = bucket
        self._presigner = presigner
        self._expires_s = expires_s
        self._part_bytes = part_bytes
        self._parts = -(-result_bytes // part_bytes)

    async def size_of(self, key: str) -> int | None:
        """See `FileStore`."""
        info = await _asked(self._presigner.stored(key))
        return None if info is None else info.size_bytes

    def source_url(self, key: str) -> str:
        """See `FileStore`."""
        return self._presigner.read(key, self._expires_s)

    async def sign(self, key: str, content_type: str, in_parts: bool) -> Signed:
        """See `FileStore`."""
        whole = self._presigner.upload(key, content_type, expires_s=self._expires_s)
        if not in_parts:
            return Signed(whole.url)
        begin = self._presigner.begin(
            key, content_type, self._parts, self._part_bytes, cache_control=CACHE_CONTROL, expires_s=self._expires_s
        )
        begun = await _asked(begin)
        return Signed(whole.url, {}, tuple(begun.urls), begun.part_bytes, begun.upload_id)

    async def finish(self, key: str, upload_id: str | None, upload: Upload) -> str | None:
        """See `FileStore`."""
        if upload.parts and upload_id is not None:
            etags = {part.part_number: part.etag for part in upload.parts}
            info: ObjectInfo | None = await _asked(self._presigner.complete(key, upload_id, etags))
        else:
            if upload_id is not None:
                await _asked(self._presigner.abort(key, upload_id))
            info = await _asked(self._presigner.stored(key))
        if info is None:
            return "the store has no object of the result's key"
        if info.size_bytes != upload.size_bytes:
            return f"the store's object has {info.size_bytes:,} bytes, and {upload.size_bytes:,} were sent"
        # Servers have two kinds of sum for what came in parts.
        sums = {upload.checksum, multipart_etag(part.etag for part in upload.parts)}
        if info.etag not in sums:
            return f"the store's object has the sum {info.etag[:60]}, and what was sent {upload.checksum}"
        return None

    async def remove(self, key: str) -> None:
        """See `FileStore`."""
        await _asked(self._remove(key))

    async def _remove(self, key: str) -> None:
        for upload in [upload async for upload in self._bucket.list_uploads(key) if upload.key == key]:
            await self._bucket.abort_upload(key, upload.upload_id)
        await self._bucket.delete(key)


async def _asked(answer: Awaitable[T]) -> T:
    """An answer of the store, errors as the stream's own."""
    try:
        return await answer
    except UploadLost as error:
        raise UploadGone(str(error)) from error
    except (SinkRefused, SinkMismatch) as error:
        raise StoreRefused(str(error)) from error
