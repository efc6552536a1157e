"""What a gateway needs for files, made from the settings."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import suppress

from prometheus_client import CollectorRegistry

from compose.archived import InClickHouse
from compose.clients import bucket, clickhouse, presigner
from compose.kafka import files_publisher, kafka_access
from compose.settings import Settings
from sinks.errors import SinkMismatch, SinkRefused
from sinks.objects import Bucket, ObjectInfo, UploadLost, part_bytes_for
from sinks.presign import Presigner
from streams.runtime.owners import OwnersTail
from streams.web.files.jobs import Jobs
from streams.web.files.parts import (
    FileParts,
    Relay,
    SignedParts,
    SignedUpload,
    StoredFile,
    UploadLimits,
    UploadRefused,
    UploadUnknown,
)
from streams.web.metrics import FileMetrics
from streams.web.owner import Owners
from streams.web.tail import TopicTail
from topics.specs import FILES_PROGRESS

_MB = 1 << 20
_ABORT_S = 5.0


class BucketFiles:
    """Implements `streams.web.files.parts.FileStore` over a bucket."""

    def __init__(self, objects: Bucket, signer: Presigner) -> None:
        self._objects = objects
        self._signer = signer

    def upload(self, key: str, content_type: str, size_bytes: int, expires_s: int) -> SignedUpload:
        """See `FileStore`."""
        signed = self._signer.upload(key, content_type, size_bytes=size_bytes, expires_s=expires_s)
        return SignedUpload(signed.url, signed.headers)

    async def begin(
        self, key: str, content_type: str, size_bytes: int, part_bytes: int, metadata: Mapping[str, str], expires_s: int
    ) -> SignedParts:
        """See `FileStore`."""
        parts = -(-size_bytes // part_bytes)
        begun = await self._signer.begin(
            key, content_type, parts, part_bytes, size_bytes=size_bytes, metadata=metadata, expires_s=expires_s
        )
        return SignedParts(begun.upload_id, begun.urls)

    async def complete(self, key: str, upload_id: str, etags: Mapping[int, str]) -> StoredFile:
        """See `FileStore`."""
        try:
            return _stored(await self._signer.complete(key, upload_id, etags))
        except UploadLost as error:
            raise UploadUnknown(str(error)) from None
        except (SinkRefused, SinkMismatch) as error:
            raise UploadRefused(str(error)) from None

    async def stored(self, key: str) -> StoredFile | None:
        """See `FileStore`."""
        found = await self._signer.stored(key)
        return _stored(found) if found is not None else None

    async def relay(self, key: str, content_type: str, size_bytes: int, blocks: AsyncIterator[bytes]) -> StoredFile:
        """See `FileStore`."""
        # The smallest parts that do: what is in memory is what the relay costs.
        part_bytes = part_bytes_for(size_bytes)
        upload = await self._objects.upload(key, part_bytes, content_type)
        try:
            async for number, data in _numbered(blocks, part_bytes):
                await upload.part(number, data)
            return _stored(await upload.complete())
        except BaseException as error:
            await self._give_up(key)
            if isinstance(error, (SinkRefused, SinkMismatch, UploadLost)):
                raise UploadRefused(str(error)) from None
            raise

    async def _give_up(self, key: str) -> None:
        """Leave nothing of its upload, though the store had not said yet that it began one; what a store that is away still
        has, `clean` removes."""
        with suppress(TimeoutError):
            async with asyncio.timeout(_ABORT_S):
                await self._objects.abort_uploads(key, -1.0)

    async def remove(self, key: str) -> None:
        """See `FileStore`."""
        await self._objects.delete_many([key])

    def link(self, key: str, file_name: str, expires_s: int) -> str:
        """See `FileStore`."""
        return self._signer.download(key, file_name, expires_s)


class GatewayFiles:
    """The parts, and their start and end. Made inside a running event loop."""

    def __init__(self, settings: Settings, announced: OwnersTail, registry: CollectorRegistry) -> None:
        self._bucket = bucket(settings)
        self._publisher = files_publisher(settings, "gateway")

        def url_of(partition: int) -> str | None:
            owner = announced.owners.get(("files", partition))
            return owner.url if owner is not None else None

        self._owners = Owners("files", url_of, self._publisher.partitions)
        self._sink = clickhouse(settings)
        jobs = Jobs(self._publisher, self._owners, InClickHouse(self._sink))
        self._tail = TopicTail(kafka_access(settings).aiokafka(), FILES_PROGRESS, jobs.note)
        self.parts = FileParts(
            BucketFiles(self._bucket, presigner(settings, self._bucket)),
            jobs,
            FileMetrics(registry),
            UploadLimits(
                file_bytes_max=settings.converter_source_mb * _MB,
                parts_above_bytes=settings.upload_parts_above_mb * _MB,
                part_bytes=settings.upload_part_mb * _MB,
                url_s=settings.upload_url_s,
            ),
            relay=Relay(relays=asyncio.Semaphore(settings.files_relays)) if settings.files_relay else None,
        )

    async def start(self) -> None:
        """Begin to connect; returns at once."""
        await self._publisher.start()
        await self._tail.start()

    async def close(self) -> None:
        """Disconnect, once no request is left."""
        await self._tail.stop()
        await self._owners.close()
        await self._publisher.close()
        await self._bucket.close()
        await self._sink.close()


async def _numbered(blocks: AsyncIterator[bytes], part_bytes: int) -> AsyncIterator[tuple[int, bytes]]:
    """The blocks joined to parts of `part_bytes`, the last one shorter, numbered from 1."""
    number, part = 1, bytearray()
    async for block in blocks:
        while block:
            room = part_bytes - len(part)
            part += block[:room]
            block = block[room:]
            if len(part) == part_bytes:
                data = bytes(part)
                part.clear()
                yield number, data
                number += 1
    if part:
        yield number, bytes(part)


def _stored(info: ObjectInfo) -> StoredFile:
    return StoredFile(info.size_bytes, info.etag, info.content_type, info.metadata)
