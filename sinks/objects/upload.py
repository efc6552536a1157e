"""An object made of equal parts: sent in any order, taken up again after a crash, verified at the end.

Memory: the part that the caller holds while it is sent; nothing is kept but sizes and sums.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from functools import partial
from types import MappingProxyType

import structlog

from sinks.errors import SinkMismatch, SinkRefused, SinkUnavailable
from sinks.objects.parts import (
    PART_BYTES_MAX,
    PART_BYTES_MIN,
    content_md5,
    fault_of_part,
    fault_of_parts,
    md5_hex,
    multipart_etag,
)
from sinks.objects.records import ObjectInfo, Part, UploadState
from sinks.objects.requests import Requests
from sinks.objects.whole import ObjectChanged, ObjectMissing, WholeObjects, attributes, mismatch
from sinks.threads import in_thread

log = structlog.get_logger(__name__)

RESTARTS_MAX = 3
_LISTED_MAX = 1_000


class UploadLost(SinkUnavailable):
    """The store no longer knows the upload: its parts are gone. Send them again, to the same Upload."""


class Upload:
    """One object on its way, from `Bucket.upload`. An object smaller than a part is put whole, at `complete`."""

    def __init__(
        self,
        requests: Requests,
        objects: WholeObjects,
        key: str,
        part_bytes: int,
        content_type: str | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> None:
        if not PART_BYTES_MIN <= part_bytes <= PART_BYTES_MAX:
            raise ValueError(f"a part of {part_bytes:,} bytes is not one of {PART_BYTES_MIN:,} to {PART_BYTES_MAX:,}")
        self.key = key
        self.part_bytes = part_bytes
        self._requests = requests
        self._client = requests.client
        self._objects = objects
        self._content_type = content_type
        self._metadata = metadata
        self._id: str | None = None
        self._parts: dict[int, Part] = {}
        self._small: bytes | None = None
        self._beginning = asyncio.Lock()

    @property
    def state(self) -> UploadState | None:
        """What `Bucket.upload(resume=...)` goes on from; None while the store knows of no upload."""
        return UploadState(self.key, self._id, self.part_bytes) if self._id else None

    @property
    def parts(self) -> Mapping[int, Part]:
        """The parts that the store has, by number."""
        return MappingProxyType(self._parts)

    async def resume(self, state: UploadState) -> bool:
        """Go on with an upload of this key and part size; False if there is none any more: it is begun anew.

        One of another part size is aborted, as its parts cannot be used.
        """
        assert state.key == self.key, f"the upload of {state.key} cannot be resumed as {self.key}"
        self._id = state.upload_id
        if state.part_bytes != self.part_bytes:
            await self.abort()
            return False
        parts = await self._listed()
        if parts is None:
            self._forget()
            return False
        self._parts = parts
        return True

    async def part(self, number: int, data: bytes) -> bool:
        """Send part `number`, from 1; only the last may be short. False if the store had it already.

        Any order, several at once, and the same number again are allowed. Raises SinkRefused for what can never be a
        part, UploadLost, and SinkMismatch if the store received something else.
        """
        if fault := fault_of_part(number, len(data), self.part_bytes):
            raise SinkRefused(f"{self._what('part of')}: {fault}")
        if number == 1 and len(data) < self.part_bytes and self._id is None:
            # Nothing more can follow, so that this is the whole object.
            self._small = data
            return True
        md5 = await in_thread("md5", partial(md5_hex, data))
        if self._parts.get(number) == (sent := Part(number, len(data), md5)):
            return False
        await self._send(await self._begun(), sent, data)
        return True

    async def send(
        self, parts: Callable[[], AsyncIterator[tuple[int, bytes]]], restarts_max: int = RESTARTS_MAX
    ) -> ObjectInfo:
        """Send the parts that `parts()` gives and complete. It is called again, from the start, when the upload is lost.

        It must give the same parts each time; those that the store has are not sent again.
        """
        for restart in range(restarts_max + 1):
            try:
                sent: set[int] = set()
                async for number, data in parts():
                    await self.part(number, data)
                    sent.add(number)
                if self._parts.keys() - sent:
                    await self._refuse_foreign()
                return await self.complete()
            except UploadLost:
                if restart == restarts_max:
                    raise
                log.warning("upload lost, sent again", key=self.key, restart=restart + 1)
        raise AssertionError("unreachable")

    async def complete(self) -> ObjectInfo:
        """Make the object of the parts, and verify it: its size, and its sum against those of the parts.

        Raises SinkRefused if a part is missing or one but the last is short, UploadLost, and SinkMismatch.
        """
        if self._small is not None and self._id is None:
            info = await self._objects.put_verified(self.key, self._small, self._content_type, None, self._metadata)
            self._small = None
            return info
        if fault := fault_of_parts(self._parts, self.part_bytes):
            raise SinkRefused(f"{self._what('complete')}: {fault}")
        upload_id = self._id
        answered = await self._requests.find("complete", self.key, self._completing())
        try:
            info = await self._verified()
        except SinkMismatch:
            if answered is None:
                # Nor is the object there, as it would be if only the answer to an earlier attempt had been lost.
                raise self._lost("complete", upload_id) from None
            self._forget()
            raise
        # Only now: a caller that gave up waiting may ask again.
        self._forget()
        return info

    async def abort(self) -> None:
        """Give the upload up, and its parts back to the store; nothing happens if there is none."""
        if self._id:
            which = {**self._requests.at(self.key), "UploadId": self._id}
            await self._requests.find("abort", self.key, partial(self._client.abort_multipart_upload, **which))
        self._forget()

    async def _refuse_foreign(self) -> None:
        """What was resumed was to be a longer object, which nobody finished: its parts must not become the end of this one."""
        upload_id = self._id
        await self.abort()
        raise self._lost("resume", upload_id)

    async def _begun(self) -> str:
        async with self._beginning:
            if self._id is None:
                headers = attributes(self._content_type, self._metadata)

                def work() -> str:
                    begun = self._client.create_multipart_upload(**self._requests.at(self.key), **headers)
                    return str(begun["UploadId"])

                self._id = await self._requests.ask("begin", self.key, work)
                self._small = None
            return self._id

    async def _send(self, upload_id: str, part: Part, data: bytes) -> None:
        verb = f"part {part.number} of"

        def work() -> str:
            answer = self._client.upload_part(
                **self._requests.at(self.key),
                UploadId=upload_id,
                PartNumber=part.number,
                Body=data,
                ContentMD5=content_md5(part.md5),
            )
            return str(answer["ETag"]).strip('"')

        try:
            etag = await self._requests.find(verb, self.key, work)
        except SinkRefused:
            if part.number not in self._parts or self._id != upload_id:
                raise
            # A server that cannot replace a part (rclone, which writes them to a file as they come).
            await self.abort()
            etag = None
        # Of parts sent side by side, one may have found out first, and another begun anew.
        if etag is None or self._id != upload_id:
            raise self._lost(verb, upload_id)
        if etag != part.md5:
            written = (part.size_bytes, part.md5)
            raise mismatch(self._what(verb), written, ObjectInfo(part.size_bytes, etag))
        self._parts[part.number] = part

    async def _listed(self) -> dict[int, Part] | None:
        """The parts that the store has; None if it does not know the upload."""
        parts: dict[int, Part] = {}
        marker = 0
        while True:
            place = {"PartNumberMarker": marker, "MaxParts": _LISTED_MAX}
            which = {**self._requests.at(self.key), "UploadId": self._id, **place}
            page = await self._requests.find("parts of", self.key, partial(self._client.list_parts, **which))
            if page is None:
                return None
            for found in page.get("Parts", ()):
                number = int(found["PartNumber"])
                parts[number] = Part(number, int(found["Size"]), str(found["ETag"]).strip('"'))
            if not page.get("IsTruncated") or int(page["NextPartNumberMarker"]) <= marker:
                return parts
            marker = int(page["NextPartNumberMarker"])

    def _completing(self) -> Callable[[], object]:
        parts = [{"PartNumber": number, "ETag": f'"{part.md5}"'} for number, part in sorted(self._parts.items())]
        which = {**self._requests.at(self.key), "UploadId": self._id, "MultipartUpload": {"Parts": parts}}
        return partial(self._client.complete_multipart_upload, **which)

    async def _verified(self) -> ObjectInfo:
        """The object, if it is what was sent."""
        parts = [part for _, part in sorted(self._parts.items())]
        written = (sum(part.size_bytes for part in parts), multipart_etag(part.md5 for part in parts))
        found = await self._objects.head(self.key)
        if found == ObjectInfo(*written):
            return found
        # A server that answers another kind of ETag (rclone: the MD5 of the whole) is asked for the bytes themselves.
        own_kind = found is not None and found.size_bytes == written[0] and "-" not in found.etag
        if found is None or not own_kind or not await self._reads_back(parts):
            raise mismatch(self._what("complete"), written, found)
        return found

    async def _reads_back(self, parts: list[Part]) -> bool:
        blocks = self._objects.read(self.key, self.part_bytes)
        try:
            found = [await in_thread("md5", partial(md5_hex, block)) async for block in blocks]
        except (ObjectChanged, ObjectMissing):
            return False
        return found == [part.md5 for part in parts]

    def _lost(self, verb: str, upload_id: str | None) -> UploadLost:
        if self._id == upload_id:
            self._forget()
        return UploadLost(f"{self._what(verb)}: the store no longer knows the upload; its parts must be sent again")

    def _forget(self) -> None:
        self._id = None
        self._parts = {}
        self._small = None

    def _what(self, verb: str) -> str:
        return self._requests.what(verb, self.key)
