"""Presigned URLs: whoever has one may do the one thing that it names, until it expires, and no byte passes through here.

Uploads and downloads go straight to the bucket. A URL is a secret: it is never logged and never written to Kafka.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any
from urllib.parse import quote, urlsplit

from botocore.exceptions import ClientError

from sinks.errors import SinkMismatch, SinkRefused
from sinks.objects import PARTS_MAX, Bucket, ObjectInfo, UploadLost
from sinks.objects.whole import attributes

UPLOAD_S = 3_600
DOWNLOAD_S = 24 * 3_600
#: What S3 lets a presigned URL live at most.
EXPIRES_MAX_S = 7 * 24 * 3_600
# What servers say that set no rules for a bucket, or not by this key pair. rclone takes the request for a CreateBucket.
_NO_RULES = {"AccessDenied", "BucketAlreadyExists", "MethodNotAllowed", "NotImplemented"}


@dataclass(frozen=True)
class PresignedUpload:
    """One PUT of one object. `headers` are bound by the signature: whoever uploads must send exactly these."""

    key: str
    url: str = field(repr=False)
    headers: Mapping[str, str]
    expires_s: int


@dataclass(frozen=True)
class PresignedParts:
    """The PUTs of an object in equal parts of `part_bytes`, numbered from 1 in the order of `urls`."""

    key: str
    upload_id: str
    part_bytes: int
    urls: Sequence[str] = field(repr=False)
    expires_s: int


@dataclass(frozen=True)
class Usage:
    """How much lies below a prefix."""

    objects: int
    size_bytes: int


@dataclass(frozen=True)
class PublicDomain:
    """A domain of one's own before the bucket. R2's custom domains refuse presigned URLs; with a `secret`, links carry the
    token that Cloudflare's rule `is_timed_hmac_valid_v0(secret, http.request.uri, seconds, http.request.timestamp.sec, 8)`
    checks, and without one they are open to everybody."""

    base_url: str
    secret: str = field(default="", repr=False)

    def link(self, key: str, now_s: int) -> str:
        """The object's address; its token counts from `now_s` (Unix seconds)."""
        url = f"{self.base_url.rstrip('/')}/{quote(key, safe='/-_.~')}"
        if not self.secret:
            return url
        mac = hmac.new(self.secret.encode(), f"{urlsplit(url).path}{now_s}".encode(), hashlib.sha256).digest()
        return f"{url}?verify={now_s}-{quote(base64.b64encode(mac).decode(), safe='')}"


class Presigner:
    """Signs for one bucket, and asks it what came of that. Signing asks nothing of the store; the rest waits for it."""

    def __init__(self, bucket: Bucket, domain: PublicDomain | None = None) -> None:
        self._bucket = bucket
        self._requests = bucket.requests
        self._client = bucket.requests.client
        self._domain = domain

    def upload(
        self,
        key: str,
        content_type: str,
        *,
        size_bytes: int | None = None,
        metadata: Mapping[str, str] | None = None,
        expires_s: int = UPLOAD_S,
    ) -> PresignedUpload:
        """A PUT of `key` as `content_type`, and of exactly `size_bytes` where given; the store refuses any other.

        `metadata` is ASCII.
        """
        headers = {"Content-Type": content_type}
        which = {**self._requests.at(key), **attributes(content_type, metadata)}
        if size_bytes is not None:
            which["ContentLength"] = size_bytes
            headers["Content-Length"] = str(size_bytes)
        headers |= {f"x-amz-meta-{name}": value for name, value in (metadata or {}).items()}
        return PresignedUpload(key, self._signed("put_object", which, expires_s), headers, expires_s)

    def download(self, key: str, file_name: str | None = None, expires_s: int = DOWNLOAD_S) -> str:
        """A link that gives the object, saved by browsers as `file_name` (any Unicode).

        It leads to the public domain if there is one: the name is then the object's own, and the domain's rule says how long
        the link lasts.
        """
        if self._domain is not None:
            return self._domain.link(key, int(time.time()))
        which: dict[str, Any] = dict(self._requests.at(key))
        if file_name is not None:
            which["ResponseContentDisposition"] = content_disposition(file_name)
        # The object of a key never changes, but the link is one person's own.
        which["ResponseCacheControl"] = f"private, max-age={min(expires_s, 3_600)}, immutable"
        return self._signed("get_object", which, expires_s)

    def read(self, key: str, expires_s: int = UPLOAD_S) -> str:
        """A GET of the bucket itself, for a process and not for a browser."""
        return self._signed("get_object", self._requests.at(key), expires_s)

    async def begin(
        self,
        key: str,
        content_type: str,
        parts: int,
        part_bytes: int,
        *,
        size_bytes: int | None = None,
        metadata: Mapping[str, str] | None = None,
        cache_control: str | None = None,
        expires_s: int = UPLOAD_S,
    ) -> PresignedParts:
        """Begin a multipart upload and sign the PUT of each of its parts, all of `part_bytes` but the last.

        With `size_bytes` each URL takes exactly its own part's bytes. The object is given with `cache_control`.
        """
        if not 1 <= parts <= PARTS_MAX:
            raise SinkRefused(f"{self._requests.what('begin', key)}: {parts:,} parts are not 1 to {PARTS_MAX:,}")
        headers = attributes(content_type, metadata) | ({"CacheControl": cache_control} if cache_control else {})
        begun = await self._requests.ask(
            "begin", key, partial(self._client.create_multipart_upload, **self._requests.at(key), **headers)
        )
        upload_id = str(begun["UploadId"])
        urls = []
        for number in range(1, parts + 1):
            which: dict[str, Any] = {**self._requests.at(key), "UploadId": upload_id, "PartNumber": number}
            if size_bytes is not None:
                which["ContentLength"] = min(part_bytes, size_bytes - (number - 1) * part_bytes)
            urls.append(self._signed("upload_part", which, expires_s))
        return PresignedParts(key, upload_id, part_bytes, tuple(urls), expires_s)

    async def complete(self, key: str, upload_id: str, etags: Mapping[int, str]) -> ObjectInfo:
        """Make the object of its parts, by number; asking again for one that is made changes nothing.

        Raises UploadLost if the store knows neither the upload nor the object, SinkRefused for parts it does not have.
        """
        parts = [{"PartNumber": number, "ETag": f'"{etag}"'} for number, etag in sorted(etags.items())]
        which = {**self._requests.at(key), "UploadId": upload_id, "MultipartUpload": {"Parts": parts}}
        answered = await self._requests.find("complete", key, partial(self._client.complete_multipart_upload, **which))
        info = await self._bucket.head(key)
        if info is None:
            what = self._requests.what("complete", key)
            if answered is None:
                raise UploadLost(f"{what}: the store does not know this upload; begin another")
            raise SinkMismatch(f"{what}: the store took the parts, and has no object")
        return info

    async def abort(self, key: str, upload_id: str) -> None:
        """Give a multipart upload up; nothing happens if there is none."""
        await self._bucket.abort_upload(key, upload_id)

    async def stored(self, key: str) -> ObjectInfo | None:
        """Whether the object is there, its size and sum."""
        return await self._bucket.head(key)

    async def usage(self) -> dict[str, Usage]:
        """Objects and bytes by the first part of their keys (`converted/`, `audio/`); reads the whole listing."""
        objects: Counter[str] = Counter()
        size: Counter[str] = Counter()
        async for info in self._bucket.list():
            prefix, slash, _ = info.key.partition("/")
            objects[prefix + slash if slash else ""] += 1
            size[prefix + slash if slash else ""] += info.size_bytes
        return {prefix: Usage(objects[prefix], size[prefix]) for prefix in sorted(objects)}

    async def allow_origins(self, origins: Sequence[str]) -> None:
        """Let pages of these origins PUT, GET and HEAD by presigned URL, and read an answer's ETag.

        Raises SinkRefused where the server sets no rules for a bucket (the embedded one allows every origin by itself).
        """
        rule = {
            "AllowedOrigins": list(origins),
            "AllowedMethods": ["GET", "HEAD", "PUT"],
            "AllowedHeaders": ["content-type"],
            "ExposeHeaders": ["ETag", "Content-Length", "Content-Range", "Content-Disposition"],
            "MaxAgeSeconds": 3_600,
        }
        bucket = self._requests.bucket

        def work() -> None:
            try:
                self._client.put_bucket_cors(Bucket=bucket, CORSConfiguration={"CORSRules": [rule]})
            except ClientError as error:
                code = str(error.response.get("Error", {}).get("Code", ""))
                if code in _NO_RULES:
                    raise SinkRefused(f"object store: the CORS rules of {bucket} cannot be set: {error}") from error
                raise

        await self._requests.ask("allow origins of", "", work)

    def _signed(self, operation: str, which: Mapping[str, Any], expires_s: int) -> str:
        assert 1 <= expires_s <= EXPIRES_MAX_S, f"a URL cannot last {expires_s} s"
        return str(self._client.generate_presigned_url(operation, Params=dict(which), ExpiresIn=expires_s))


def content_disposition(file_name: str) -> str:
    """An attachment of this name as RFC 6266 has it: ASCII for old clients, RFC 5987 for the rest."""
    plain = "".join(c if " " <= c <= "~" and c not in '"\\%' else "_" for c in file_name)
    if plain == file_name:
        return f'attachment; filename="{plain}"'
    return f"attachment; filename=\"{plain}\"; filename*=UTF-8''{quote(file_name, safe='')}"
