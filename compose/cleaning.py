"""Sweeps the audio folder of the bucket: finds what nobody needs, and removes it unless it is only asked."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterable
from dataclasses import dataclass, field

from sinks.clickhouse.queries import audio_segment_states, audio_session_states
from sinks.clickhouse.sink import ClickHouseSink
from sinks.objects import Bucket, ObjectInfo, OpenUpload
from streams.audio.leftovers import (
    REMOVED,
    Known,
    SegmentFacts,
    SessionFacts,
    Verdict,
    judge_object,
    judge_upload,
    place_of,
)
from streams.files import leftovers
from topics.audio_events import AUDIO_PREFIX, Manifest, decode_manifest, manifest_key

#: Sessions that one question to ClickHouse names.
_ASKED_AT_ONCE = 200
#: A session's id and its objects.
Folder = tuple[str, list[ObjectInfo]]


@dataclass(frozen=True)
class Leftover:
    """What was found: an object, or an upload of that key. `verdict` says why it goes or stays."""

    kind: str
    key: str
    size_bytes: int
    age_s: float
    verdict: Verdict | leftovers.Verdict


@dataclass
class Swept:
    """What a sweep has come to: leftovers that go, and how many stay for each reason."""

    looked_at: int = 0
    leftovers: list[Leftover] = field(default_factory=list)
    kept: dict[str, int] = field(default_factory=dict)

    def note(self, found: Leftover) -> bool:
        """Count it in; whether it goes."""
        if found.verdict in REMOVED | leftovers.REMOVED:
            self.leftovers.append(found)
            return True
        self.kept[found.verdict] = self.kept.get(found.verdict, 0) + 1
        return False


class Cleaner:
    """Sweeps once. What is younger than `older_than_s`, by the store's own clock, is not looked at.

    With `dry_run` nothing is changed.
    """

    def __init__(
        self,
        bucket: Bucket,
        sink: ClickHouseSink,
        *,
        older_than_s: float,
        dry_run: bool,
        progress: Callable[[Swept], None] = lambda swept: None,
    ) -> None:
        self._bucket = bucket
        self._sink = sink
        self._older_than_s = older_than_s
        self._dry_run = dry_run
        self._progress = progress
        self.swept = Swept()

    async def run(self) -> Swept:
        """Sweep uploads, then objects. Raises SinkUnavailable when ClickHouse does not answer: then nothing more goes."""
        uploads = [u async for u in self._bucket.list_uploads(AUDIO_PREFIX) if u.age_s >= self._older_than_s]
        for at in range(0, len(uploads), _ASKED_AT_ONCE):
            await self._uploads(uploads[at : at + _ASKED_AT_ONCE])
        async for folders in _batches(self._folders()):
            await self._objects(folders)
        return self.swept

    async def _uploads(self, uploads: list[OpenUpload]) -> None:
        names = {place.session_id for upload in uploads if (place := place_of(upload.key))}
        known = await self._known(names, manifests=False)
        for upload in uploads:
            place = place_of(upload.key)
            verdict = judge_upload(known[place.session_id]) if place else Verdict.UNKNOWN
            if self.swept.note(Leftover("upload", upload.key, 0, upload.age_s, verdict)) and not self._dry_run:
                await self._bucket.abort_upload(upload.key, upload.upload_id)
            self._progress(self.swept)

    async def _folders(self) -> AsyncIterator[Folder]:
        """Each session's old objects, where there are more of them than a recording and its manifest."""
        name, found = "", list[ObjectInfo]()
        async for info in self._bucket.list(AUDIO_PREFIX):
            self.swept.looked_at += 1
            place = place_of(info.key)
            if place is None:
                self.swept.note(Leftover("object", info.key, info.size_bytes, info.age_s, Verdict.UNKNOWN))
                continue
            if place.session_id != name:
                if not _whole(found):
                    yield name, found
                name, found = place.session_id, []
            if info.age_s >= self._older_than_s:
                found.append(info)
        if not _whole(found):
            yield name, found

    async def _objects(self, folders: list[Folder]) -> None:
        known = await self._known({name for name, _ in folders}, manifests=True)
        for name, objects in folders:
            for info in objects:
                verdict = judge_object(info.key, info.etag, known[name])
                if verdict is None:
                    continue
                if verdict in REMOVED and not self._dry_run and not await self._removed(info):
                    verdict = Verdict.REPLACED
                self.swept.note(Leftover("object", info.key, info.size_bytes, info.age_s, verdict))
        self._progress(self.swept)

    async def _removed(self, listed: ObjectInfo) -> bool:
        """Remove an object unless it is another than was judged: its id may have been opened anew."""
        # Listed again, not asked for by HEAD: rclone's HEAD can tell an older time of one that was put twice.
        async for now in self._bucket.list(listed.key, page=1):
            if now.key != listed.key:
                break
            if now != listed or now.modified_ms != listed.modified_ms:
                return False
            await self._bucket.delete(listed.key)
            break
        return True

    async def _known(self, names: Iterable[str], manifests: bool) -> dict[str, Known]:
        wanted = sorted(names)
        segments: dict[str, dict[tuple[int, int], SegmentFacts]] = {name: {} for name in wanted}
        for row in await audio_segment_states(self._sink, wanted):
            segments[row.session_id][row.first_seq, row.last_seq] = SegmentFacts(row.status, row.md5)
        sessions = {
            row.session_id: SessionFacts(row.status, row.recording)
            for row in await audio_session_states(self._sink, wanted)
        }
        return {
            name: Known(sessions.get(name), segments[name], await self._manifest(name) if manifests else None)
            for name in wanted
        }

    async def _manifest(self, name: str) -> Manifest | None:
        data = await self._bucket.get(manifest_key(name))
        manifest = None if data is None else decode_manifest(data)
        if not isinstance(manifest, Manifest):
            return None
        recording = await self._bucket.head(manifest.recording)
        return manifest if recording is not None and recording.size_bytes == manifest.size_bytes else None


def _whole(objects: list[ObjectInfo]) -> bool:
    """Whether these are nothing but one recording and a manifest."""
    places = [place for info in objects if (place := place_of(info.key))]
    recordings = sum(place.recording for place in places)
    described = any(place.segment is None and not place.recording for place in places)
    return not places or (recordings <= 1 and described and not any(place.segment for place in places))


async def _batches(folders: AsyncIterator[Folder]) -> AsyncIterator[list[Folder]]:
    batch: list[Folder] = []
    async for folder in folders:
        batch.append(folder)
        if len(batch) == _ASKED_AT_ONCE:
            yield batch
            batch = []
    if batch:
        yield batch
