"""What the store says of objects, of uploads and of their parts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class ObjectInfo:
    """An object; two are equal when their content is.

    The ETag of one that was put whole is the MD5 of its bytes, in hex. `content_type` and `metadata` are known from a
    `head` only, `modified_ms` is the store's clock, by which `age_s` was true when it was listed.
    """

    size_bytes: int
    etag: str
    key: str = field(default="", compare=False)
    modified_ms: int = field(default=0, compare=False)
    age_s: float = field(default=0.0, compare=False)
    content_type: str | None = field(default=None, compare=False)
    metadata: Mapping[str, str] = field(default_factory=dict, compare=False)


@dataclass(frozen=True)
class Part:
    """A part that the store has; `md5` in hex, as its ETag."""

    number: int
    size_bytes: int
    md5: str


@dataclass(frozen=True)
class UploadState:
    """All that is needed to go on with an upload in another process; which parts are there, the store knows."""

    key: str
    upload_id: str
    part_bytes: int


@dataclass(frozen=True)
class OpenUpload:
    """An upload that was begun and neither completed nor aborted; `age_s` by the store's own clock."""

    key: str
    upload_id: str
    age_s: float
