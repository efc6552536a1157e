"""What the file endpoints need: the object store, as far as a gateway signs for it and asks it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from streams.web.files.jobs import Jobs
from streams.web.metrics import FileMetrics


@dataclass(frozen=True)
class SignedUpload:
    """The PUT of a whole file; whoever uploads sends exactly these headers."""

    url: str = field(repr=False)
    headers: Mapping[str, str]


@dataclass(frozen=True)
class SignedParts:
    """The PUTs of a file's parts, from the first on."""

    upload_id: str
    urls: Sequence[str] = field(repr=False)


@dataclass(frozen=True)
class StoredFile:
    """An object as the store has it. `metadata` as it was when the upload began, if the store remembers it."""

    size_bytes: int
    etag: str
    content_type: str | None = None
    metadata: Mapping[str, str] = field(default_factory=dict)


class UploadUnknown(Exception):
    """The store knows neither the multipart upload nor its object."""


class UploadRefused(Exception):
    """The store does not make an object of these parts."""


class FileStore(Protocol):
    """The bucket. Signing asks nothing of the store; what is asked of it waits for as long as it is away."""

    def upload(self, key: str, content_type: str, size_bytes: int, expires_s: int) -> SignedUpload:
        """A PUT of exactly so many bytes of this type."""

    async def begin(
        self, key: str, content_type: str, size_bytes: int, part_bytes: int, metadata: Mapping[str, str], expires_s: int
    ) -> SignedParts:
        """A multipart upload in parts of `part_bytes`, and the PUT of each."""

    async def complete(self, key: str, upload_id: str, etags: Mapping[int, str]) -> StoredFile:
        """Make the object of its parts; asking again changes nothing. Raises UploadUnknown, UploadRefused."""

    async def stored(self, key: str) -> StoredFile | None:
        """The object, if it is there."""

    async def relay(self, key: str, content_type: str, size_bytes: int, blocks: AsyncIterator[bytes]) -> StoredFile:
        """Store the `size_bytes` that come in `blocks`, a part in memory at a time. Raises UploadRefused, and what `blocks`
        raises; nothing is kept then."""

    async def remove(self, key: str) -> None:
        """Remove an object."""

    def link(self, key: str, file_name: str, expires_s: int) -> str:
        """A URL that gives the object to whoever has it, saved by browsers as `file_name`."""


@dataclass(frozen=True)
class UploadLimits:
    """A file of more than `parts_above_bytes` goes up in parts of `part_bytes`. URLs are good for `url_s`."""

    file_bytes_max: int = 2 << 30
    parts_above_bytes: int = 64 << 20
    part_bytes: int = 16 << 20
    url_s: int = 3_600


@dataclass(frozen=True)
class Relay:
    """Files that pass through the gateway, and clients that measure it, so many at once; ended when nothing moves for
    `stalled_s`, and all when the gateway is `ending`."""

    stalled_s: float = 60.0
    relays: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(2))
    measures: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(8))
    ending: asyncio.Event = field(default_factory=asyncio.Event)


@dataclass(frozen=True)
class FileParts:
    """The parts, made by compose."""

    store: FileStore
    jobs: Jobs
    metrics: FileMetrics
    uploads: UploadLimits = UploadLimits()
    link_s: int = 24 * 3_600
    store_timeout_s: float = 5.0
    relay: Relay | None = None
