"""What the stream does in the world: finds sources, signs uploads, has them converted, verifies and sweeps.

Nothing of it decides anything before the log has it, and no byte of a file passes through. The pause before another attempt
is drawn here and enters as part of the record that says why. A process that gave its partition up reports nothing.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import structlog

from streams.files.converting import ConversionFailed, Converter, ConvertRequest
from streams.files.effects import Abandon, Convert, Effect, Sweep, Verify, Wake
from streams.files.fold import FilesFold
from streams.files.job import Job
from streams.files.store import FileStore, Signed, StoreRefused, UploadGone
from streams.runtime.outside import Seat
from streams.runtime.reporting import Reporting
from topics import files
from topics.files import AttemptFailed, Converted, Prepared, Progressed, Stage, Verified
from topics.malformed import Malformed

log = structlog.get_logger(__name__)

#: What is an attempt's own: job, term and number.
_Place = tuple[str, int, int]


@dataclass(frozen=True, kw_only=True)
class OutsideLimits:
    """A source of more than `parts_above_bytes`, and any by URL, may give a result that goes in parts. Progress is told every
    `progress_s` at most. `backoff_s` gives the pause after so many failures, jitter included."""

    source_bytes: int = 2 << 30
    parts_above_bytes: int = 100 << 20
    progress_s: float = 1.0
    backoff_s: Callable[[int], float] = lambda failures: min(60.0, 2.0**failures)


@dataclass(frozen=True)
class World:
    """What all partitions of a worker share. `slots` are the attempts that it makes at once: URLs are signed for one that has
    a slot, so that none expires while it waits."""

    store: FileStore
    converter: Converter
    slots: asyncio.Semaphore
    limits: OutsideLimits


class _Progress:
    """Told of every step of a converter, it reports a few."""

    def __init__(self, place: _Place, pace_s: float, report: Callable[[files.JobRecord], None]) -> None:
        self._place = place
        self._pace_s = pace_s
        self._report = report
        self._last: tuple[Stage, int] | None = None
        self._told_at = 0.0

    def __call__(self, stage: Stage, share: float) -> None:
        percent = max(0, min(100, int(share * 100)))
        now = time.monotonic()
        same = self._last is not None and self._last[0] is stage
        if same and (self._last == (stage, percent) or now - self._told_at < self._pace_s):
            return
        self._last, self._told_at = (stage, percent), now
        self._report(Progressed(*self._place, stage, percent))


class FilesOutside(Reporting):
    """Implements `streams.runtime.outside.Outside` for one partition; says at once that it has a new owner."""

    def __init__(self, seat: Seat, world: World, fold: FilesFold) -> None:
        super().__init__(seat, fold.state.rules.source)
        self._world = world
        self._fold = fold
        self._works: dict[str, asyncio.Task[None]] = {}
        fold.take_seat(seat.term)
        self._report(files.encode(files.Owner(seat.term)))

    def begin(self, effects: Sequence[Effect]) -> None:
        """See `Outside`."""
        for effect in effects:
            match effect:
                case Convert():
                    self._start(effect)
                case Verify():
                    self._start(effect)
                case Abandon():
                    self._abandon(effect.job_id)
                case Sweep():
                    self._spawn(self._sweep(effect, self._works.get(effect.job_id)), f"sweep {effect.job_id}")
                case Wake():
                    self._report_after(effect.after_ms, files.encode(files.Idle()))

    # -- attempts ------------------------------------------------------------------------------------------------

    def _start(self, effect: Convert | Verify) -> None:
        self._abandon(effect.job_id)
        work = self._convert if isinstance(effect, Convert) else self._verify
        task = self._spawn(self._attempt(effect, work), f"{type(effect).__name__} {effect.job_id}")
        self._works[effect.job_id] = task
        task.add_done_callback(lambda done: self._ended(effect.job_id, done))

    def _abandon(self, job_id: str) -> None:
        if (task := self._works.get(job_id)) is not None:
            task.cancel()

    def _ended(self, job_id: str, done: asyncio.Task[None]) -> None:
        if self._works.get(job_id) is done:
            del self._works[job_id]

    async def _attempt(self, effect: Convert | Verify, work: Callable[[Job, _Place], Awaitable[None]]) -> None:
        """Do it, and say so if it fails."""
        job, place = self._fold.job(effect.job_id), (effect.job_id, effect.term, effect.attempt)
        try:
            async with self._world.slots if isinstance(effect, Convert) else nullcontext():
                if job is not None and self._fold.wanted(effect):
                    await work(job, place)
        except ConversionFailed as error:
            self._failed(place, error.code, str(error), error.again)
        except StoreRefused as error:
            self._failed(place, "store_refused", str(error), True)
        except UploadGone as error:
            self._failed(place, "upload_gone", str(error), True)
        except Exception as error:
            # Of one job's making, as far as can be told: it is not to take the partition with it.
            log.error("an attempt failed unexpectedly", job_id=effect.job_id, error=repr(error), exc_info=error)
            self._failed(place, "internal_error", type(error).__name__, True)

    async def _convert(self, job: Job, place: _Place) -> None:
        began = time.monotonic()
        plan = job.plan
        assert not isinstance(plan, Malformed), "a job without a plan has no attempt"
        self._seat.reach("prepare.before")
        source_url, source_bytes = await self._source(job)
        key, content_type = job.key(*place[1:]), plan.format.content_type
        # Of a URL nobody knows how large what it gives is.
        large = job.submit.source.url is not None or source_bytes > self._world.limits.parts_above_bytes
        signed = await self._world.store.sign(key, content_type, large)
        self._say(Prepared(*place, source_bytes, signed.upload_id, _ms_since(began)))
        self._seat.reach("prepare.after")
        began = time.monotonic()
        request = _request(job, source_url, key, content_type, signed)
        progress = _Progress(place, self._world.limits.progress_s, self._in_progress)
        result = await self._world.converter.convert(request, progress)
        self._seat.reach("convert.after")
        size, checksum, duration_ms = result.size, result.checksum, result.duration_ms
        self._say(Converted(*place, size, checksum, duration_ms, result.parts, _ms_since(began)))

    async def _source(self, job: Job) -> tuple[str, int]:
        """Where the source is, and its size. Raises ConversionFailed."""
        source, limit = job.submit.source, self._world.limits.source_bytes
        if source.key is None:
            assert source.url is not None
            return source.url, 0
        try:
            size = await self._world.store.size_of(source.key)
        except StoreRefused:
            raise ConversionFailed("source_refused", "the bucket can have no object of the source's key") from None
        if size is None:
            raise ConversionFailed("source_missing", "the bucket has no object of the source's key")
        if size > limit:
            message = f"the source has {size:,} bytes, more than the {limit:,} that are allowed"
            raise ConversionFailed("source_too_large", message)
        return self._world.store.source_url(source.key), size

    async def _verify(self, job: Job, place: _Place) -> None:
        began = time.monotonic()
        self._seat.reach("verify.before")
        problem = await self._world.store.finish(job.key(*place[1:]), job.course.upload_id, job.course.upload)
        self._seat.reach("verify.after")
        if problem is not None:
            raise ConversionFailed("not_verified", problem, again=True)
        self._say(Verified(*place, _ms_since(began)))

    def _failed(self, place: _Place, error_type: str, error: str, again: bool) -> None:
        job = self._fold.job(place[0])
        pause_s = self._world.limits.backoff_s(job.course.retries if job else 0)
        text = error[: files.MAX_ERROR_CHARS].encode("utf-8", "replace").decode()
        self._say(AttemptFailed(*place, error_type, text, int(pause_s * 1000) if again else None))

    def _in_progress(self, record: files.JobRecord) -> None:
        self._say(record)
        self._seat.reach("convert.during")

    # -- what is left --------------------------------------------------------------------------------------------

    async def _sweep(self, effect: Sweep, work: asyncio.Task[None] | None) -> None:
        """Once nothing of the job is under way here, remove what its other attempts have left."""
        if work is not None:
            await asyncio.wait([work])
        job = self._fold.job(effect.job_id)
        if job is None or not self._fold.wanted(effect):
            return
        try:
            for key in job.losers():
                await self._world.store.remove(key)
        except StoreRefused as error:
            log.warning("a job's leftovers cannot be removed", job_id=job.id, error=str(error))
            return
        if effect.last:
            self._say(files.Swept(job.id))

    def _say(self, record: files.JobRecord) -> None:
        self._report(files.encode(record))


def _request(job: Job, source_url: str, key: str, content_type: str, signed: Signed) -> ConvertRequest:
    submit = job.submit
    return ConvertRequest(
        url=source_url,
        format=submit.format,
        quality=submit.quality or "medium",
        options=submit.options,
        upload_url=signed.url,
        upload_key=key,
        content_type=content_type,
        metadata=dict(signed.metadata),
        parts=tuple(signed.parts),
        part_size=signed.part_bytes,
        foreign=submit.source.url is not None,
    )


def _ms_since(began: float) -> int:
    return int((time.monotonic() - began) * 1000)
