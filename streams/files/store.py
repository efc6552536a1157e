"""What the file stream wants of the object store. No byte of a file passes through here: only who may send and fetch them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from streams.files.job import Upload


class StoreRefused(Exception):
    """The store will never do this as it is asked."""


class UploadGone(Exception):
    """The store knows neither the multipart upload nor the object that it was to become."""


@dataclass(frozen=True)
class Signed:
    """Where a result may be sent, whole by `url` or in `parts` of `part_bytes`. `metadata` are headers that bind `url`."""

    url: str = field(repr=False)
    metadata: Mapping[str, str] = field(default_factory=dict)
    parts: Sequence[str] = field(default=(), repr=False)
    part_bytes: int = 0
    upload_id: str | None = None


class FileStore(Protocol):
    """One bucket. Each call waits for as long as the store is away. Raises StoreRefused."""

    async def size_of(self, key: str) -> int | None:
        """Bytes of an object; None if there is none."""

    def source_url(self, key: str) -> str:
        """A signed URL that gives an object."""

    async def sign(self, key: str, content_type: str, in_parts: bool) -> Signed:
        """Where a result may be sent; with `in_parts` a multipart upload is begun too."""

    async def finish(self, key: str, upload_id: str | None, upload: Upload) -> str | None:
        """Make the object of its parts, or give a multipart upload up that was not needed, and look at it: what is wrong
        with it, or None if the store holds what was sent. Raises UploadGone."""

    async def remove(self, key: str) -> None:
        """Remove an object and every multipart upload of its key; nothing happens if there is none."""
