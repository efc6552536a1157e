"""What the file stream does in the world, against a scripted store and converter: attempts, ends, cancels, sweeps and time."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import pytest

from streams.files.converting import ConversionFailed, ConvertRequest, ConvertResult, OnProgress
from streams.files.effects import Abandon, Convert, Effect, Sweep, Verify, Wake
from streams.files.job import Upload
from streams.files.outside import FilesOutside, OutsideLimits
from streams.files.outside import World as Outer
from streams.files.store import Signed, StoreRefused, UploadGone
from streams.runtime.outside import Seat
from tests.filesfold import MD5, RULES, World, submit
from tests.waiting import until
from topics import files
from topics.files import AttemptFailed, Converted, Idle, Owner, Prepared, Progressed, Source, Stage, Swept, Verified
from topics.malformed import Malformed

DEADLINE_S = 10.0
SECRET = "X-Amz-Signature=secret"


@dataclass
class Scripted:
    """A store and a converter. `script` are the steps of a conversion: progress, seconds to wait, exceptions."""

    script: list[Any] = field(default_factory=list)
    size: int | Exception | None = 1_000
    problem: str | Exception | None = None
    asked: list[ConvertRequest] = field(default_factory=list)
    at_once: int = 0
    most_at_once: int = 0
    in_parts: list[bool] = field(default_factory=list)
    finished: list[tuple[str, str | None]] = field(default_factory=list)
    removed: list[str] = field(default_factory=list)

    async def size_of(self, key: str) -> int | None:
        """See `FileStore`."""
        if isinstance(self.size, Exception):
            raise self.size
        return self.size

    def source_url(self, key: str) -> str:
        """See `FileStore`."""
        return f"http://store/{key}?{SECRET}"

    async def sign(self, key: str, content_type: str, in_parts: bool) -> Signed:
        """See `FileStore`."""
        self.in_parts.append(in_parts)
        parts = (f"http://store/{key}?part=1&{SECRET}",) if in_parts else ()
        return Signed(f"http://store/{key}?{SECRET}", {}, parts, 5 << 20 if in_parts else 0, "u1" if in_parts else None)

    async def finish(self, key: str, upload_id: str | None, upload: Upload) -> str | None:
        """See `FileStore`."""
        self.finished.append((key, upload_id))
        if isinstance(self.problem, Exception):
            raise self.problem
        return self.problem

    async def remove(self, key: str) -> None:
        """See `FileStore`."""
        assert self.at_once == 0, "nothing is swept while it may still be uploaded"
        self.removed.append(key)

    async def convert(self, request: ConvertRequest, on_progress: OnProgress) -> ConvertResult:
        """See `Converter`."""
        self.asked.append(request)
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        try:
            for step in self.script:
                if isinstance(step, Exception):
                    raise step
                if isinstance(step, float):
                    await asyncio.sleep(step)
                else:
                    on_progress(*step)
            return ConvertResult(r2_key=request.upload_key, size=10, checksum=MD5, duration_ms=2_000)
        finally:
            self.at_once -= 1

    def close(self) -> None:
        """See `Converter`."""


@dataclass
class Bench:
    """An outside on a fold, and what it has reported."""

    world: World
    scripted: Scripted
    slots: int = 2
    reported: list[files.JobRecord] = field(default_factory=list)
    failures: list[BaseException] = field(default_factory=list)

    def __post_init__(self) -> None:
        def report(emits: Any) -> None:
            for emit in emits:
                assert SECRET.encode() not in emit.value
                record = files.decode(emit.key, emit.value, emit.headers)
                assert not isinstance(record, Malformed), record
                self.reported.append(record)

        limits = OutsideLimits(
            source_bytes=1 << 30, parts_above_bytes=100 << 20, progress_s=60.0, backoff_s=lambda failures: 0.01
        )
        outer = Outer(self.scripted, self.scripted, asyncio.Semaphore(self.slots), limits)
        self.outside = FilesOutside(Seat(0, self.world.term, report, self.failures.append), outer, self.world.fold)
        assert self.reported == [Owner(self.world.term)], "it says at once whose the partition is"
        self.reported.clear()

    async def until(self, true: Callable[[], bool]) -> None:
        """Wait for it."""
        await until(true, DEADLINE_S)

    async def done(self) -> list[files.JobRecord]:
        """What was reported once nothing is under way."""
        await self.until(lambda: self.outside.under_way == 0)
        assert self.failures == []
        return self.reported

    def folded(self) -> Iterator[Effect]:
        """Fold what was reported; the effects that follow."""
        self.world.inflight = []
        for record in self.reported:
            self.world.say(record)
        self.reported.clear()
        self.world.read()
        self.world.flush()
        yield from self.world.inflight


def _bench(*script: Any, jobs: str = "a", url: str | None = None, **other: Any) -> Bench:
    world = World(replace(RULES, concurrency=8, per_user=8, urls=True))
    for job_id in jobs:
        world.say(submit(job_id, **({"source": Source(url=url)} if url else {})))
    while world.folded < len(world.log) or world.reports:
        world.read()
        world.flush()
    slots = other.pop("slots", 2)
    return Bench(world, Scripted(list(script), **other), slots)


def _begin(bench: Bench) -> None:
    bench.outside.begin([effect for effect in bench.world.inflight if isinstance(effect, Convert)])


async def test_an_attempt_is_prepared_converted_and_verified() -> None:
    bench = _bench((Stage.FETCHING, 1.0), (Stage.CONVERTING, 0.1), (Stage.CONVERTING, 0.7), (Stage.UPLOADING, 0.5))
    _begin(bench)
    prepared, *progress, converted = await bench.done()
    assert isinstance(prepared, Prepared) and (prepared.source_bytes, prepared.upload_id) == (1_000, None)
    told = [(step.stage, step.percent) for step in progress if isinstance(step, Progressed)]
    assert told == [(Stage.FETCHING, 100), (Stage.CONVERTING, 10), (Stage.UPLOADING, 50)], "a stage's first at once"
    assert isinstance(converted, Converted) and (converted.size_bytes, converted.duration_ms) == (10, 2_000)
    (request,) = bench.scripted.asked
    assert request.upload_key == bench.world.fold.state.jobs["a"].key(1, 1) and request.content_type == "audio/mpeg"
    bench.outside.begin([effect for effect in bench.folded() if isinstance(effect, Verify)])
    (verified,) = await bench.done()
    assert isinstance(verified, Verified)
    assert bench.scripted.finished == [(request.upload_key, None)]


@pytest.mark.parametrize(
    ("size", "url", "in_parts"),
    [(100 << 20, None, False), ((100 << 20) + 1, None, True), (None, "https://example.com/a", True)],
)
async def test_what_may_be_large_goes_in_parts(size: int | None, url: str | None, in_parts: bool) -> None:
    bench = _bench(size=size, url=url)
    _begin(bench)
    prepared, _ = await bench.done()
    assert bench.scripted.in_parts == [in_parts]
    assert isinstance(prepared, Prepared) and (prepared.upload_id is not None) == in_parts
    assert (len(bench.scripted.asked[0].parts), bench.scripted.asked[0].part_size > 0) == (int(in_parts), in_parts)


@pytest.mark.parametrize(
    ("script", "size", "error_type", "pause_ms"),
    [
        ([ConversionFailed("damaged", "cut off")], 1, "damaged", None),
        ([ConversionFailed("killed", "away", again=True)], 1, "killed", 10),
        ([StoreRefused("no")], 1, "store_refused", 10),
        ([ValueError("a fault of ours")], 1, "internal_error", 10),
        ([], None, "source_missing", None),
        ([], StoreRefused("no such key can be"), "source_refused", None),
        ([], 2 << 30, "source_too_large", None),
    ],
)
async def test_an_error_ends_the_attempt(script: list[Any], size: Any, error_type: str, pause_ms: int | None) -> None:
    bench = _bench(*script, size=size)
    _begin(bench)
    end = (await bench.done())[-1]
    assert isinstance(end, AttemptFailed) and (end.error_type, end.retry_after_ms) == (error_type, pause_ms)
    assert "a fault" not in end.error


@pytest.mark.parametrize(
    ("problem", "error_type"), [("another sum", "not_verified"), (UploadGone("no upload"), "upload_gone")]
)
async def test_what_the_store_does_not_hold_is_made_again(problem: Any, error_type: str) -> None:
    bench = _bench(problem=problem)
    _begin(bench)
    await bench.done()
    bench.outside.begin(list(bench.folded()))
    (end,) = await bench.done()
    assert isinstance(end, AttemptFailed) and (end.error_type, end.retry_after_ms) == (error_type, 10)


async def test_a_cancelled_job_is_swept_once_its_converter_is_gone() -> None:
    bench = _bench(60.0)
    _begin(bench)
    await bench.until(lambda: bench.scripted.at_once == 1)
    bench.reported.append(files.Cancel("a"))
    effects = list(bench.folded())
    assert [type(effect) for effect in effects] == [Sweep]
    bench.outside.begin([Abandon("a"), *effects])
    assert await bench.done() == []
    assert bench.scripted.removed == [bench.world.fold.state.jobs["a"].key(1, 1)]
    bench.outside.begin([Sweep("a", last=True)])
    assert await bench.done() == [Swept("a")]


async def test_an_attempt_that_is_over_before_it_begins_is_not_made() -> None:
    bench = _bench()
    effects = list(bench.world.inflight)
    bench.world.say(files.Cancel("a"))
    bench.world.read()
    bench.outside.begin(effects)
    assert await bench.done() == [] and bench.scripted.asked == []


async def test_no_more_attempts_run_than_the_worker_has_slots_for() -> None:
    bench = _bench(0.02, jobs="abcdef", slots=2)
    _begin(bench)
    records = await bench.done()
    assert sum(isinstance(record, Converted) for record in records) == 6
    assert bench.scripted.most_at_once == 2


async def test_a_process_that_gave_its_partition_up_says_nothing_more() -> None:
    bench = _bench(60.0, jobs="ab")
    _begin(bench)
    await bench.until(lambda: bench.scripted.at_once == 2)
    said = len(bench.reported)
    bench.outside.close()
    assert len(await bench.done()) == said and bench.scripted.at_once == 0


async def test_the_latest_wish_to_be_woken_is_the_one_that_counts() -> None:
    bench = _bench()
    bench.outside.begin([Wake(60_000), Wake(20)])
    await bench.until(lambda: bench.reported == [Idle()])
