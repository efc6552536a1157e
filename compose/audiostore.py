"""The bucket as the audio stream and the gateway ask for it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import Any

from sinks.errors import SinkRefused
from sinks.objects import Bucket, OpenUpload, Upload, UploadState
from sinks.presign import Presigner
from topics.audio_events import manifest_key


class BucketAudioStore:
    """Implements `streams.audio.outside.AudioStore` over a bucket."""

    def __init__(self, bucket: Bucket) -> None:
        self._bucket = bucket

    async def put_verified(self, key: str, data: bytes, content_type: str | None = None) -> Any:
        """See `AudioStore`."""
        return await self._bucket.put_verified(key, data, content_type)

    def read(self, key: str) -> AsyncIterator[bytes]:
        """See `AudioStore`."""
        return self._bucket.read(key)

    async def upload(self, key: str, part_bytes: int, content_type: str | None = None, resume: Any = None) -> Upload:
        """See `AudioStore`."""
        return await self._bucket.upload(key, part_bytes, content_type, resume=resume)

    async def unfinished(self, key: str, part_bytes: int) -> UploadState | None:
        """See `AudioStore`. Older uploads of the same key are given up."""
        found = await self._open_uploads(key)
        found.sort(key=lambda upload: upload.age_s)
        for older in found[1:]:
            await self._bucket.abort_upload(key, older.upload_id)
        return UploadState(key, found[0].upload_id, part_bytes) if found else None

    async def abandon(self, key: str) -> None:
        """See `AudioStore`."""
        for upload in await self._open_uploads(key):
            await self._bucket.abort_upload(key, upload.upload_id)

    async def _open_uploads(self, key: str) -> list[OpenUpload]:
        try:
            return [upload async for upload in self._bucket.list_uploads(key) if upload.key == key]
        except SinkRefused:
            # A server that lists none has none to go on from.
            return []

    async def keys(self, prefix: str) -> list[str]:
        """See `AudioStore`."""
        return [info.key async for info in self._bucket.list(prefix)]

    async def delete_many(self, keys: Sequence[str]) -> None:
        """See `AudioStore`."""
        await self._bucket.delete_many(keys)


class BucketRecordings:
    """Implements `streams.web.audio.recordings.RecordingStore` over a bucket."""

    def __init__(self, bucket: Bucket, presigner: Presigner) -> None:
        self._bucket = bucket
        self._presigner = presigner

    async def manifest(self, session_id: str) -> bytes | None:
        """See `RecordingStore`."""
        return await self._bucket.get(manifest_key(session_id))

    def link(self, key: str, expires_s: int, file_name: str) -> str:
        """See `RecordingStore`."""
        return self._presigner.download(key, file_name, expires_s)
