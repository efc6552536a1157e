"""What audio does in the world: puts segments, assembles recordings, removes what a recording has made needless.

Everything may be done twice, also by two owners at once: keys and bytes come from the session alone. What came of an
effect is reported as a record of its partition, and decides nothing before the log has it.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol, TypeVar

import msgspec
import structlog

from streams.audio import outcomes, seqs
from streams.audio.containers.recording import Recording, new_recording
from streams.audio.effects import Assemble, Effect, PutSegment, RemoveSegments, Source
from streams.audio.held import Shelf
from streams.audio.logreader import ChunkReader, LogGone
from streams.audio.objects import CONTENT_TYPES, Parts, audio_of, segment_object
from streams.runtime.outside import Seat
from topics.audio import Open
from topics.audio_events import (
    Manifest,
    encode_manifest,
    manifest_key,
    recording_extension,
    recording_key,
    segment_extension,
    segment_key,
    session_prefix,
)

log = structlog.get_logger(__name__)
T = TypeVar("T")


class Damaged(Exception):
    """What the store holds is not what was put there."""


class Upload(Protocol):
    """An object on its way in equal parts."""

    async def send(self, parts: Callable[[], AsyncIterator[tuple[int, bytes]]]) -> Any:
        """Send all parts and complete; `parts` is called again when the store has lost the upload."""


class AudioStore(Protocol):
    """The object store. Each call waits while it is away."""

    async def put_verified(self, key: str, data: bytes, content_type: str | None = None) -> Any:
        """Write an object and look that it is there, whole."""

    def read(self, key: str) -> AsyncIterator[bytes]:
        """An object's bytes, block by block."""

    async def upload(self, key: str, part_bytes: int, content_type: str | None = None, resume: Any = None) -> Upload:
        """An object to be sent in equal parts, going on from `resume`."""

    async def unfinished(self, key: str, part_bytes: int) -> Any:
        """The newest upload of this key that was begun and not ended, to be resumed, or None."""

    async def abandon(self, key: str) -> None:
        """Give up the uploads of this key that were begun and not ended."""

    async def keys(self, prefix: str) -> list[str]:
        """The objects below a prefix."""

    async def delete_many(self, keys: Sequence[str]) -> None:
        """Remove objects."""


@dataclass(frozen=True, kw_only=True)
class OutsideLimits:
    """An attempt lasts `attempt_s` at most, within which the store's own client tries again. `backoff_s` gives the pause
    after a failed attempt, from 0; `refusals` are the errors that no attempt cures, `mismatches` those by which the store says
    that it holds other bytes. Of the worker's memory each recording under way takes about four parts, whatever its length."""

    attempts: int = 20
    attempt_s: float = 30.0
    part_bytes: int = 8 << 20
    uploads: int = 4
    recordings: int = 4
    backoff_s: Callable[[int], float] = lambda failures: min(60.0, 0.5 * 2.0**failures)
    refusals: tuple[type[Exception], ...] = ()
    mismatches: tuple[type[Exception], ...] = ()


@dataclass(frozen=True)
class World:
    """What all partitions of a worker share."""

    store: AudioStore
    reader: ChunkReader
    limits: OutsideLimits
    uploads: asyncio.Semaphore = field(init=False)
    recordings: asyncio.Semaphore = field(init=False)

    def __post_init__(self) -> None:
        # Long recordings do not keep the segments of live sessions waiting, whose bytes are held until they are stored.
        object.__setattr__(self, "uploads", asyncio.Semaphore(self.limits.uploads))
        object.__setattr__(self, "recordings", asyncio.Semaphore(self.limits.recordings))


@dataclass
class _Tries:
    """How often something was tried, and whether an attempt found other bytes in the store than were written."""

    made: int
    damaged: bool = False


class _GaveUp(Exception):
    def __init__(self, cause: Exception) -> None:
        super().__init__((str(cause) or type(cause).__name__)[:1_000])


class AudioOutside:
    """Implements `streams.runtime.outside.Outside` for one partition."""

    def __init__(self, seat: Seat, world: World, shelf: Shelf, wanted: Callable[[Effect], bool], source: str) -> None:
        self._seat = seat
        self._world = world
        self._shelf = shelf
        self._wanted = wanted
        self._topic = source
        self._tasks: dict[str, set[asyncio.Task[None]]] = defaultdict(set)

    def begin(self, effects: Sequence[Effect]) -> None:
        """See `Outside`."""
        for effect in effects:
            session_id = effect.opened.session_id
            # What touches all of a session's segments waits for what touches one: a segment put again after its removal
            # would stay for ever.
            before = set() if isinstance(effect, PutSegment) else set(self._tasks[session_id])
            task = asyncio.create_task(self._guarded(effect, before))
            self._tasks[session_id].add(task)
            task.add_done_callback(partial(self._ended, session_id))

    def close(self) -> None:
        """See `Outside`."""
        for tasks in list(self._tasks.values()):
            for task in tasks:
                task.cancel()
        self._shelf.close()

    @property
    def under_way(self) -> int:
        """Effects that have not ended."""
        return sum(map(len, self._tasks.values()))

    def _ended(self, session_id: str, task: asyncio.Task[None]) -> None:
        self._tasks[session_id].discard(task)
        if not self._tasks[session_id]:
            del self._tasks[session_id]

    async def _guarded(self, effect: Effect, before: set[asyncio.Task[None]]) -> None:
        try:
            if before:
                await asyncio.wait(before)
            outcome = await self._done(effect) if self._wanted(effect) else None
        except asyncio.CancelledError:
            raise
        except Exception as error:
            self._seat.fail(error)
            return
        if outcome is not None:
            session_id = effect.opened.session_id
            self._seat.report([outcomes.encode(outcome, session_id, self._topic, self._seat.partition)])

    async def _done(self, effect: Effect) -> outcomes.Outcome | None:
        match effect:
            case PutSegment():
                return await self._put(effect)
            case Assemble():
                return await self._assemble(effect)
            case RemoveSegments():
                return await self._remove(effect)

    # -- segments -----------------------------------------------------------------------------------------------

    async def _put(self, effect: PutSegment) -> outcomes.Outcome | None:
        key = _segment_key(effect.opened, effect.first_seq, effect.last_seq)
        content_type = CONTENT_TYPES[segment_extension(effect.opened.format)]

        async def attempt() -> tuple[int, str] | None:
            async with self._world.uploads:
                if not self._wanted(effect):
                    return None
                data = await self._segment(effect)
                md5 = await asyncio.to_thread(_md5, data)
                self._seat.reach("put.before")
                async with asyncio.timeout(self._world.limits.attempt_s):
                    await self._world.store.put_verified(key, data, content_type)
                self._seat.reach("put.after")
                return len(data), md5

        first, last, tries = effect.first_seq, effect.last_seq, _Tries(effect.attempts)
        try:
            put = await self._persist(key, attempt, tries)
        except _GaveUp as error:
            return outcomes.Failed(first, last, tries.made, str(error), tries.damaged)
        return None if put is None else outcomes.Stored(first, last, *put, tries.made, tries.damaged)

    async def _segment(self, effect: PutSegment) -> bytes:
        """A segment's object, of memory or of the log."""
        session_id = effect.opened.session_id
        self._shelf.busy(session_id, effect.first_seq, True)
        try:
            chunks = self._shelf.bytes_of(session_id, effect.first_seq, effect.last_seq)
            if chunks is None:
                chunks = await self._world.reader.chunks(self._seat.partition, effect)
            return await asyncio.to_thread(segment_object, effect.opened, chunks)
        finally:
            self._shelf.busy(session_id, effect.first_seq, False)

    async def _persist(self, what: str, attempt: Callable[[], Awaitable[T]], tries: _Tries) -> T:
        """The result of `attempt`, the tries noted. Raises _GaveUp when no further one makes sense."""
        limits = self._world.limits
        failures = 0
        while True:
            tries.made += 1
            try:
                return await attempt()
            except Exception as error:
                failures += 1
                tries.damaged |= isinstance(error, (Damaged, *limits.mismatches))
                if failures >= limits.attempts or isinstance(error, (LogGone, *limits.refusals)):
                    raise _GaveUp(error) from error
                log.info("tried in vain", what=what, attempt=failures, error=repr(error)[:300])
                await asyncio.sleep(limits.backoff_s(failures - 1))

    # -- recordings ---------------------------------------------------------------------------------------------

    async def _assemble(self, effect: Assemble) -> outcomes.Outcome:
        key = recording_key(effect.opened.session_id, recording_extension(effect.opened))
        tries = _Tries(0)
        try:
            recorded = await self._persist(key, lambda: self._record(effect, key), tries)
        except _GaveUp as error:
            return outcomes.Unrecorded(str(error), tries.damaged, len(effect.sources))
        return msgspec.structs.replace(recorded, damaged=tries.damaged, segments=len(effect.sources))

    async def _record(self, effect: Assemble, key: str) -> outcomes.Recorded:
        async with self._world.recordings:
            made = await self._send(effect, key)
            self._seat.reach("complete.after")
            size, sha256 = await self._look(key)
            manifest = _manifest(effect, key, made, size, sha256)
            name = manifest_key(effect.opened.session_id)
            await self._world.store.put_verified(name, encode_manifest(manifest), "application/json")
            # What an owner that was fenced has begun beside this one.
            await self._world.store.abandon(key)
            return outcomes.Recorded(key, size, manifest.md5, manifest.duration_ms)

    async def _send(self, effect: Assemble, key: str) -> Recording:
        """Write the recording's object; it is encoded once, and what an earlier attempt has sent is not sent again."""
        store, part_bytes = self._world.store, self._world.limits.part_bytes
        found: list[Recording] = []

        async def parts() -> AsyncIterator[tuple[int, bytes]]:
            recording = new_recording(effect.opened, sum(source.size for source in effect.sources))
            found[:] = [recording]
            cut = Parts(recording, part_bytes)
            for source in effect.sources:
                data = await self._source(effect.opened, source)
                for part in await asyncio.to_thread(_added, effect.opened, cut, data):
                    yield part
            for part in await asyncio.to_thread(lambda: list(cut.finish())):
                yield part
            self._seat.reach("complete.before")

        resume = await store.unfinished(key, part_bytes)
        content_type = CONTENT_TYPES[recording_extension(effect.opened)]
        upload = await store.upload(key, part_bytes, content_type, resume=resume)
        await upload.send(parts)
        return found[0]

    async def _source(self, opened: Open, source: Source) -> bytes:
        key = _segment_key(opened, source.first_seq, source.last_seq)
        data = b"".join([block async for block in self._world.store.read(key)])
        if await asyncio.to_thread(_md5, data) != source.md5:
            raise Damaged(
                f"{key} is not what was stored: {len(data)} bytes instead of {source.object_size} of MD5 {source.md5}"
            )
        return data

    async def _look(self, key: str) -> tuple[int, str]:
        """Size and SHA-256 of a finished object, as the store gives it."""
        size, sha256 = 0, hashlib.sha256()
        async for block in self._world.store.read(key):
            await asyncio.to_thread(sha256.update, block)
            size += len(block)
        return size, sha256.hexdigest()

    async def _remove(self, effect: RemoveSegments) -> outcomes.Outcome:
        """By listing, so that what an owner that was fenced has put late goes too."""
        prefix = f"{session_prefix(effect.opened.session_id)}segments/"

        async def attempt() -> None:
            if keys := await self._world.store.keys(prefix):
                await self._world.store.delete_many(keys)

        try:
            await self._persist(prefix, attempt, _Tries(0))
        except _GaveUp as error:
            log.warning("segments stay beside their recording", prefix=prefix, error=str(error))
        return outcomes.Removed()


def _segment_key(opened: Open, first_seq: int, last_seq: int) -> str:
    return segment_key(opened.session_id, first_seq, last_seq, segment_extension(opened.format))


def _added(opened: Open, parts: Parts, data: bytes) -> list[tuple[int, bytes]]:
    return [part for piece in audio_of(opened, data) for part in parts.add(piece)]


def _md5(data: bytes) -> str:
    return hashlib.md5(data, usedforsecurity=False).hexdigest()


def _manifest(effect: Assemble, key: str, made: Recording, size: int, sha256: str) -> Manifest:
    opened = effect.opened
    ranges = [(source.first_seq, source.last_seq) for source in effect.sources]
    return Manifest(
        session_id=opened.session_id,
        user=opened.user,
        format=opened.format,
        rate=opened.rate,
        channels=opened.channels,
        tier=opened.tier,
        store=opened.store,
        opened_ms=effect.opened_ms,
        closed_ms=effect.closed_ms,
        closed_by=effect.closed_by,
        duration_ms=made.duration_ms or 0,
        recording=key,
        size_bytes=size,
        md5=made.md5,
        sha256=sha256,
        seqs=tuple(seqs.union(ranges)),
        gaps=tuple(seqs.gaps(seqs.union([*ranges, *effect.failed]))),
        failed=tuple(seqs.union(effect.failed)),
    )
