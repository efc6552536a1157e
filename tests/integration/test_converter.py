"""The converter against a real store: straight to the bucket by presigned URL, and nothing left behind however it ends."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import hashlib
import os
import signal
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
import psutil
import pytest

from compose.commands.converter import serve_converter
from compose.converter.limits import ConverterLimits
from compose.converter.pool import ProcessConverter
from compose.converter.remote import RemoteConverter
from compose.converter.scratch import Scratch
from compose.settings import SettingError, load
from sinks.objects import PART_BYTES_MIN, Bucket
from sinks.presign import Presigner
from streams.files.converting import CACHE_CONTROL, ConversionFailed, Converter, ConvertRequest, ConvertResult
from tests.media import describe, make, quiet, silence
from tests.objectstores import Impatient, ObjectStore, strict
from topics.files import Stage

pytestmark = pytest.mark.stack

LIMITS = ConverterLimits(threads=1, wall_s=60.0, fetch_s=30.0, upload_s=30.0)
KEY = "converted/1_a_clip.mp3"


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ObjectStore]:
    with strict(tmp_path_factory.mktemp("store")) as store:
        yield store


@pytest.fixture
async def bucket(running: ObjectStore) -> AsyncIterator[Bucket]:
    running.proxy.reset()
    made = Bucket(running.address, Impatient(0.02, 0.2))
    yield made
    await made.close()


@pytest.fixture
def scratch(tmp_path: Path) -> Iterator[Scratch]:
    """What a conversion leaves in its scratch folder is a failure of any test here."""
    made = Scratch(tmp_path / "scratch")
    yield made
    assert [left.name for left in made.folder.iterdir()] == ["lock"]
    made.close()
    assert not made.folder.exists()


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """Two seconds of WebM."""
    return make(tmp_path_factory.mktemp("media") / "clip.webm").read_bytes()


@pytest.fixture(scope="module")
def long(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """What takes a while to convert, and is small."""
    return quiet(tmp_path_factory.mktemp("media") / "long.flac", 1.0).read_bytes()


@dataclasses.dataclass
class Bench:
    """A converter and the store that it works for."""

    store: ObjectStore
    bucket: Bucket
    scratch: Scratch

    @property
    def presigner(self) -> Presigner:
        return Presigner(self.bucket)

    def converter(self, limits: ConverterLimits = LIMITS, slots: int = 2) -> ProcessConverter:
        return ProcessConverter(self.scratch, limits, self.store.proxy.url, slots)

    async def asked(self, data: bytes | Path, format: str = "mp3", **other: Any) -> ConvertRequest:
        """A request to convert these bytes."""
        key = "uploads/1/source"
        await self.bucket.put(key, data.read_bytes() if isinstance(data, Path) else data)
        upload = self.presigner.upload(KEY, "audio/mpeg", metadata={"job": "j-1"})
        fields: dict[str, Any] = {
            "url": self.presigner.read(key),
            "format": format,
            "quality": "low",
            "upload_url": upload.url,
            "upload_key": KEY,
            "content_type": "audio/mpeg",
            "metadata": {"job": "j-1"},
        }
        return ConvertRequest(**{**fields, **other})

    async def stored(self, to: Path) -> Path:
        data = await self.bucket.get(KEY)
        assert data is not None
        to.write_bytes(data)
        return to


@pytest.fixture
async def bench(running: ObjectStore, bucket: Bucket, scratch: Scratch) -> AsyncIterator[Bench]:
    yield Bench(running, bucket, scratch)
    await bucket.delete(KEY)


def told(into: list[tuple[Stage, float]]) -> Callable[[Stage, float], None]:
    return lambda stage, share: into.append((stage, share))


def silent(stage: Stage, share: float) -> None:
    pass


async def until(what: Callable[[], Any], seconds: float = 30.0) -> Any:
    """The first true value of `what`."""
    ends = time.monotonic() + seconds
    while not (found := what()):
        assert time.monotonic() < ends, "it never came"
        await asyncio.sleep(0.02)
    return found


async def refused(converter: Converter, request: ConvertRequest) -> ConversionFailed:
    with pytest.raises(ConversionFailed) as failed:
        await converter.convert(request, silent)
    assert "http" not in str(failed.value) and "X-Amz" not in str(failed.value)
    return failed.value


def ffmpegs() -> list[psutil.Process]:
    """Those that convert. The one that looks at the source before, which writes no file, is over before it can be asked."""
    found = []
    for child in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            if child.name().startswith("ffmpeg") and "-y" in child.cmdline():
                found.append(child)
    return found


async def test_from_the_bucket_to_the_bucket(bench: Bench, tmp_path: Path, clip: bytes) -> None:
    said: list[tuple[Stage, float]] = []
    result = await bench.converter().convert(await bench.asked(clip), told(said))
    file = await bench.stored(tmp_path / "to")
    assert (result.r2_key, result.size, result.parts) == (KEY, file.stat().st_size, ())
    assert result.checksum == hashlib.md5(file.read_bytes()).hexdigest()
    found = describe(file)
    assert (found.audio, round(found.seconds, 1)) == ("mp3", 2.0) and abs(result.duration_ms - 2_000) < 100
    info = await bench.bucket.head(KEY)
    assert info is not None and (info.content_type, info.metadata) == ("audio/mpeg", {"job": "j-1"})
    stored = bench.store.raw().head_object(Bucket="sluiceway", Key=KEY)
    assert stored["CacheControl"] == CACHE_CONTROL
    assert list(dict.fromkeys(stage for stage, _ in said)) == list(Stage)
    assert said[-1] == (Stage.UPLOADING, 1.0)


async def test_a_large_result_goes_in_equal_parts_and_each_once(bench: Bench, tmp_path: Path) -> None:
    begun = await bench.presigner.begin(KEY, "audio/wav", 4, PART_BYTES_MIN)
    parts = {"parts": tuple(begun.urls), "part_size": begun.part_bytes, "content_type": "audio/wav"}
    request = await bench.asked(silence(tmp_path / "a", 0.1), "wav", **{**parts, "quality": "medium"})
    bench.store.proxy.refuse("UploadPart", 2)
    bench.store.proxy.lose_answer("UploadPart")
    result = await bench.converter().convert(request, silent)
    assert [part.part_number for part in result.parts] == [1, 2]
    assert abs(result.size - 2 * 2_880_000) < 1_000
    info = await bench.presigner.complete(KEY, begun.upload_id, {p.part_number: p.etag for p in result.parts})
    assert info.size_bytes == result.size
    file = await bench.stored(tmp_path / "to")
    assert hashlib.md5(file.read_bytes()).hexdigest() == result.checksum
    too_few = msgspec.structs.replace(request, parts=request.parts[:1])
    assert (await refused(bench.converter(), too_few)).code == "result_too_large"


async def test_a_store_that_fails_for_a_moment_is_asked_again(bench: Bench, clip: bytes) -> None:
    request = await bench.asked(clip)
    proxy = bench.store.proxy
    proxy.refuse("GetObject", 2)
    proxy.drop("PutObject")
    proxy.spoil("PutObject")
    result = await bench.converter().convert(request, silent)
    info = await bench.bucket.head(KEY)
    assert info is not None and info.etag == result.checksum


async def test_urls_that_are_no_longer_good(bench: Bench, clip: bytes) -> None:
    request = await bench.asked(clip)

    def spoilt(url: str) -> str:
        return url[:-1] + ("0" if url[-1] != "0" else "1")

    late = await refused(bench.converter(), msgspec.structs.replace(request, upload_url=spoilt(request.upload_url)))
    assert (late.code, late.again) == ("upload_refused", True)
    late = await refused(bench.converter(), msgspec.structs.replace(request, url=spoilt(request.url)))
    assert (late.code, late.again) == ("source_refused", True)
    missing = msgspec.structs.replace(request, url=bench.presigner.read("uploads/none"))
    gone = await refused(bench.converter(), missing)
    assert (gone.code, gone.again) == ("source_missing", False)
    assert await bench.bucket.head(KEY) is None


@pytest.mark.parametrize(
    ("data", "change", "code"),
    [
        (b"just words, " * 99, {}, "not_media"),
        (None, {"format": "tape"}, "unknown_format"),
        (None, {"url": "http://169.254.169.254/latest/meta-data"}, "foreign_url"),
        (None, {"url": "file:///etc/passwd"}, "foreign_url"),
        (None, {"upload_url": "http://example.com/"}, "foreign_url"),
    ],
)
async def test_what_cannot_be_converted(
    bench: Bench, clip: bytes, data: bytes | None, change: dict[str, Any], code: str
) -> None:
    request = await bench.asked(clip if data is None else data, **change)
    failed = await refused(bench.converter(), request)
    assert (failed.code, failed.again) == (code, False)
    assert await bench.bucket.head(KEY) is None


async def test_a_source_over_the_limit(bench: Bench, clip: bytes) -> None:
    small = dataclasses.replace(LIMITS, source_bytes=len(clip) - 1)
    failed = await refused(bench.converter(small), await bench.asked(clip))
    assert (failed.code, failed.again) == ("source_too_large", False)


async def test_cancelling_ends_all_of_it(bench: Bench, long: bytes) -> None:
    request = await bench.asked(long, "mp3")
    task = asyncio.create_task(bench.converter().convert(request, silent))
    (ffmpeg,) = await until(ffmpegs)
    child = ffmpeg.parent()
    assert os.getpgid(ffmpeg.pid) == child.pid, "they are one group"
    assert "SLUICEWAY" not in "".join(child.environ()) + "".join(ffmpeg.environ())
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await until(lambda: not child.is_running() and not ffmpeg.is_running())
    assert await bench.bucket.head(KEY) is None


@pytest.mark.parametrize("who", ["child", "ffmpeg"])
async def test_killed_in_mid_conversion(bench: Bench, long: bytes, who: str) -> None:
    request = await bench.asked(long, "mp3")
    task = asyncio.create_task(refused(bench.converter(), request))
    (ffmpeg,) = await until(ffmpegs)
    os.kill(ffmpeg.pid if who == "ffmpeg" else ffmpeg.ppid(), signal.SIGKILL)
    failed = await task
    assert (failed.code, failed.again) == ("killed", True)
    await until(lambda: not ffmpeg.is_running())
    assert await bench.bucket.head(KEY) is None


async def test_no_more_at_once_than_there_are_slots(bench: Bench, tmp_path: Path, long: bytes) -> None:
    converter = bench.converter(slots=1)
    first = asyncio.create_task(converter.convert(await bench.asked(long, "mp3"), silent))
    await until(ffmpegs)
    said: list[tuple[Stage, float]] = []
    second = asyncio.create_task(converter.convert(await bench.asked(silence(tmp_path / "b", 0.01), "mp3"), told(said)))
    await asyncio.sleep(0)
    assert converter.busy and said == []
    first.cancel()
    assert (await second).duration_ms > 36_000 - 100


def test_what_a_killed_converter_has_left_is_swept(tmp_path: Path) -> None:
    alive = Scratch(tmp_path)
    (tmp_path / "converter-dead" / "job-1").mkdir(parents=True)
    (tmp_path / "converter-dead" / "job-1" / "source").write_bytes(b"x")
    (tmp_path / "another").mkdir()
    with alive.job() as folder:
        other = Scratch(tmp_path)
        assert folder.exists() and alive.folder.exists()
    assert sorted(p.name for p in tmp_path.iterdir() if p.is_dir()) == sorted(
        ["another", alive.folder.name, other.folder.name]
    )
    alive.close()
    other.close()


# -- behind HTTP ------------------------------------------------------------------------------------------------------


@pytest.fixture
async def service(bench: Bench, tmp_path: Path) -> AsyncIterator[str]:
    settings = load({}, s3_endpoint=bench.store.proxy.url, data_dir=tmp_path, converter_port=0, converter_key="k")
    async with serve_converter(settings) as url:
        yield url
    assert [left.name for left in (tmp_path / "scratch").iterdir() if left != bench.scratch.folder] == ["sweep.lock"]


async def _post(url: str, body: Any, key: str = "k") -> tuple[int, Any]:
    headers = {"Authorization": f"Bearer {key}"}
    async with aiohttp.ClientSession() as session, session.post(f"{url}/convert", json=body, headers=headers) as answer:
        return answer.status, await answer.json(content_type=None)


async def test_as_the_seed_has_it(bench: Bench, service: str, clip: bytes) -> None:
    """One request with the seed's fields, one answer with its three."""
    body = msgspec.to_builtins(await bench.asked(clip))
    status, result = await _post(service, body)
    info = await bench.bucket.head(KEY)
    assert info is not None
    assert status == 200 and {"r2_key", "size", "checksum"} <= result.keys()
    assert (result["r2_key"], result["size"], result["checksum"]) == (KEY, info.size_bytes, info.etag)
    status, problem = await _post(service, {**body, "format": "tape"})
    assert (status, problem["type"]) == (422, "urn:sluiceway:problem:unknown_format")
    assert [(await _post(service, wrong))[0] for wrong in ({}, [], {**body, "parts": 7}, "x")] == [400] * 4
    assert (await _post(service, body, "wrong"))[0] == 401


async def test_the_same_converter_elsewhere(bench: Bench, service: str, clip: bytes) -> None:
    said: list[tuple[Stage, float]] = []
    result = await RemoteConverter(service, "k").convert(await bench.asked(clip), told(said))
    assert isinstance(result, ConvertResult) and result.r2_key == KEY
    assert list(dict.fromkeys(stage for stage, _ in said)) == list(Stage)
    failed = await refused(RemoteConverter(service, "k"), await bench.asked(b"no media"))
    assert (failed.code, failed.again) == ("not_media", False)
    failed = await refused(RemoteConverter(service, "wrong"), await bench.asked(clip))
    assert (failed.code, failed.again) == ("converter_refused", True)
    failed = await refused(RemoteConverter("http://127.0.0.1:9"), await bench.asked(clip))
    assert (failed.code, failed.again) == ("converter_lost", True)


async def test_who_hangs_up_wants_no_result(bench: Bench, service: str, long: bytes) -> None:
    request = await bench.asked(long, "mp3")
    task = asyncio.create_task(RemoteConverter(service, "k").convert(request, silent))
    (ffmpeg,) = await until(ffmpegs)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await until(lambda: not ffmpeg.is_running())
    assert await bench.bucket.head(KEY) is None


async def test_an_open_converter_is_not_served_to_a_network(tmp_path: Path) -> None:
    with pytest.raises(SettingError, match="SLUICEWAY_CONVERTER_KEY"):
        async with serve_converter(load({}, data_dir=tmp_path, converter_host="0.0.0.0")):
            pass
