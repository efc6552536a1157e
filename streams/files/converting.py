"""What a converter is asked, and what it answers: the coordinator's side of it, whoever does the work and wherever.

A request holds presigned URLs. They are secrets: they go to the converter and nowhere else.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, Protocol

import msgspec
from msgspec import Meta

from topics.files import MAX_PARTS, Count, Md5, SentPart, Stage

#: What a result tells a CDN before the bucket: the object of a key never changes, and a link to it is good for a day.
CACHE_CONTROL = "public, max-age=86400, immutable"

_Text = Annotated[str, Meta(min_length=1, max_length=4_096)]


class ConvertRequest(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One conversion. `upload_url` takes the whole result; with `parts`, the presigned URLs of a multipart upload in
    order, a result larger than `part_size` goes in that many bytes a part.

    `metadata` are headers that the upload's signature binds (`x-amz-meta-*` without that prefix), `parts` need none. With
    `foreign`, `url` is a client's own and leads anywhere; else to the store.
    """

    url: _Text
    format: _Text
    upload_url: _Text
    upload_key: _Text
    content_type: _Text
    quality: str = "medium"
    options: dict[str, Any] = {}
    metadata: dict[str, str] = {}
    parts: tuple[_Text, ...] = ()
    part_size: Annotated[int, Meta(ge=0, le=5 << 30)] = 0
    foreign: bool = False

    def __repr__(self) -> str:
        return f"ConvertRequest({self.upload_key!r}, {self.format!r}, {self.quality!r})"


class ConvertResult(msgspec.Struct, frozen=True, kw_only=True):
    """A result that lies in the bucket, or whose parts do, to be completed. `checksum` is the MD5 of its bytes, in hex;
    `duration_ms` how long it plays."""

    r2_key: str
    size: Count
    checksum: Md5
    duration_ms: Count = 0
    parts: Annotated[tuple[SentPart, ...], Meta(max_length=MAX_PARTS)] = ()


class ConversionFailed(Exception):
    """A conversion came to nothing. `code` is a label of few values; `again` says that another attempt may succeed. The
    message holds no URL."""

    def __init__(self, code: str, message: str, *, again: bool = False) -> None:
        super().__init__(message)
        self.code = code
        self.again = again


#: Told how far a conversion is: the stage, and its share from 0 to 1.
OnProgress = Callable[[Stage, float], None]


class Converter(Protocol):
    """Who converts. Cancelling stops the work, wherever it is done."""

    async def convert(self, request: ConvertRequest, on_progress: OnProgress) -> ConvertResult:
        """Do it. Raises ConversionFailed."""

    def close(self) -> None:
        """Let go of what is held, once nothing is under way."""
