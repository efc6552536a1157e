"""Conversions by real ffmpeg: every format plays, and what is no media file, or too much of one, is refused in words."""

from __future__ import annotations

import asyncio
import dataclasses
from pathlib import Path
from typing import Any

import psutil
import pytest

from compose.converter.limits import ConverterLimits
from compose.converter.running import running
from compose.converter.transcode import probe, transcode
from streams.files import formats
from streams.files.converting import ConversionFailed
from streams.files.formats import Plan
from tests.media import Described, describe, live, make, silence

LIMITS = ConverterLimits(threads=1, wall_s=60.0)


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two seconds of WebM."""
    return make(tmp_path_factory.mktemp("media") / "clip.webm")


async def convert(
    source: Path, to: Path, *asked: Any, limits: ConverterLimits = LIMITS
) -> tuple[Described, list[float]]:
    plan = formats.plan(*asked)
    assert isinstance(plan, Plan)
    shares: list[float] = []
    played_ms = await transcode(plan, source, to, limits, shares.append)
    found = describe(to)
    assert abs(found.seconds * 1_000 - played_ms) < 200
    return found, shares


async def refused(source: Path, to: Path, *asked: Any, limits: ConverterLimits = LIMITS) -> ConversionFailed:
    with pytest.raises(ConversionFailed) as failed:
        await convert(source, to, *asked or ("wav",), limits=limits)
    assert str(source) not in str(failed.value) and str(failed.value).isprintable()
    return failed.value


@pytest.mark.parametrize(
    ("name", "container", "audio", "video"),
    [
        ("mp3", "mp3", "mp3", None),
        ("m4a", "mov,mp4,m4a,3gp,3g2,mj2", "aac", None),
        ("opus", "ogg", "opus", None),
        ("flac", "flac", "flac", None),
        ("wav", "wav", "pcm_s16le", None),
        ("mp4", "mov,mp4,m4a,3gp,3g2,mj2", "aac", "h264"),
        ("webm", "matroska,webm", "opus", "vp9"),
    ],
)
async def test_every_format_plays(
    clip: Path, tmp_path: Path, name: str, container: str, audio: str, video: str | None
) -> None:
    found, shares = await convert(clip, tmp_path / "to", name, "low")
    assert (found.container, found.audio, found.video) == (container, audio, video)
    assert abs(found.seconds - 2.0) < 0.15
    assert shares == sorted(shares) and shares[-1] > 0.95
    assert found.size == ((320, 180) if video else (0, 0))


async def test_better_is_larger(clip: Path, tmp_path: Path) -> None:
    sizes = []
    for quality in ("low", "medium", "high"):
        await convert(clip, tmp_path / quality, "mp3", quality)
        sizes.append((tmp_path / quality).stat().st_size)
    assert sizes == sorted(set(sizes))


async def test_trim_and_scale(clip: Path, tmp_path: Path) -> None:
    options = {"trim": {"start_ms": 500, "duration_ms": 1_000}, "scale": {"width": 161, "height": 1_000}}
    found, _ = await convert(clip, tmp_path / "a", "mp4", "low", options)
    assert abs(found.seconds - 1.0) < 0.15
    assert found.size == (160, 90), "the shape is kept, sides are even, and nothing becomes larger"
    after_the_end = await refused(clip, tmp_path / "b", "mp3", "low", {"trim": {"start_ms": 9_000}})
    assert after_the_end.code == "bad_options"


async def test_sound_alone_has_no_picture_to_convert(tmp_path: Path) -> None:
    sound = make(tmp_path / "a.mp3", 1.0, video=False)
    assert (await refused(sound, tmp_path / "b", "mp4")).code == "no_stream"
    picture = make(tmp_path / "a.mp4", 1.0, sound=False)
    assert (await refused(picture, tmp_path / "b", "mp3")).code == "no_stream"
    assert (await convert(picture, tmp_path / "c", "webm", "low"))[0].audio is None


@pytest.mark.parametrize(
    "data",
    [b"", b"\x00" * 4_096, b"just words, " * 500, b"\x89PNG\r\n\x1a\n" + bytes(500), b"%PDF-1.7\n" + b"x" * 900],
    ids=["empty", "zeros", "text", "png", "pdf"],
)
async def test_what_is_no_media_file(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "a").write_bytes(data)
    failed = await refused(tmp_path / "a", tmp_path / "b")
    assert (failed.code, failed.again) == ("not_media", False)


@pytest.mark.parametrize("share", [0.5, 0.8])
async def test_a_file_that_is_cut_off(clip: Path, tmp_path: Path, share: float) -> None:
    whole = make(tmp_path / "whole.webm", 12.0, "-c:a", "libopus", video=False).read_bytes()
    (tmp_path / "a").write_bytes(whole[: int(len(whole) * share)])
    failed = await refused(tmp_path / "a", tmp_path / "b", "mp3")
    assert (failed.code, failed.again) == ("damaged", False) and "of 12.0 seconds" in str(failed)
    (tmp_path / "c").write_bytes(clip.read_bytes()[:300])
    assert (await refused(tmp_path / "c", tmp_path / "d", "mp3")).code in ("damaged", "not_media", "no_stream")


async def test_a_playlist_leads_nowhere(clip: Path, tmp_path: Path) -> None:
    """In whatever clothes: HLS, concat, DASH, SDP, and a playlist behind the beginning of a real file."""
    secret = make(tmp_path / "secret.wav", 1.0, video=False)
    lists = {
        "hls": f"#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\nfile://{secret}\n#EXT-X-ENDLIST\n",
        "hls-bare": f"#EXTM3U\n#EXTINF:9,\n{secret}\n#EXT-X-ENDLIST\n",
        "concat": f"ffconcat version 1.0\nfile '{secret}'\n",
        "concatf": f"file:{secret}\n",
        "sdp": "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=audio 5004 RTP/AVP 0\n",
        "dash": f'<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011"><BaseURL>{secret}</BaseURL></MPD>',
    }
    for name, text in lists.items():
        (tmp_path / name).write_text(text)
        failed = await refused(tmp_path / name, tmp_path / "to")
        assert failed.code == "not_media", (name, failed)
        assert name != "concat" or "name other files" in str(failed), "it is not even opened as what it is"
    (tmp_path / "polyglot").write_bytes(b"GIF89a" + lists["hls"].encode())
    assert (await refused(tmp_path / "polyglot", tmp_path / "to")).code in ("not_media", "no_stream", "damaged")
    (tmp_path / "webm").write_bytes(clip.read_bytes() + lists["hls"].encode())
    found, _ = await convert(tmp_path / "webm", tmp_path / "to", "wav")
    assert abs(found.seconds - 2.0) < 0.15, "only the file itself is read"


async def test_a_file_of_hundreds_of_streams_is_looked_at_to_its_end(tmp_path: Path) -> None:
    many = make(tmp_path / "many.mkv", 0.2, *["-map", "1:a"] * 400, "-map", "0:v", "-c:a", "pcm_s16le", "-c:v", "mpeg4")
    assert (await probe(many, LIMITS)).video
    found, _ = await convert(many, tmp_path / "to", "mp4", "low")
    assert (found.audio, found.video) == ("aac", "h264")


async def test_ten_hours_of_silence(tmp_path: Path) -> None:
    failed = await refused(silence(tmp_path / "a", 10.0), tmp_path / "b", "mp3")
    assert (failed.code, failed.again) == ("too_long", False) and "4 h" in str(failed)


async def test_a_stream_that_does_not_say_how_long_it_is(tmp_path: Path) -> None:
    source = live(tmp_path / "a", 5.0)
    assert (await probe(source, LIMITS)).duration_ms is None
    limits = dataclasses.replace(LIMITS, duration_s=2.0)
    assert (await refused(source, tmp_path / "b", "wav", limits=limits)).code == "too_long"
    assert abs((await convert(source, tmp_path / "c", "wav"))[0].seconds - 5.0) < 0.15


async def test_a_result_that_becomes_too_large(clip: Path, tmp_path: Path) -> None:
    limits = dataclasses.replace(LIMITS, output_bytes=100_000)
    failed = await refused(clip, tmp_path / "b", "wav", limits=limits)
    assert (failed.code, failed.again) == ("result_too_large", False)


async def test_too_little_memory(clip: Path, tmp_path: Path) -> None:
    limits = dataclasses.replace(LIMITS, memory_bytes=150 << 20)
    with pytest.raises(ConversionFailed) as failed:
        await convert(clip, tmp_path / "b", "webm", "high", limits=limits)
    assert failed.value.code in ("memory_limit", "not_media", "damaged") and not failed.value.again


async def test_too_little_time(tmp_path: Path) -> None:
    long = silence(tmp_path / "a", 3.9)
    slow = dataclasses.replace(LIMITS, cpu_s=1)
    assert (await refused(long, tmp_path / "b", "flac", "high", limits=slow)).code == "cpu_limit"
    late = dataclasses.replace(LIMITS, wall_s=0.6)
    assert (await refused(long, tmp_path / "b", "flac", "high", limits=late)).code == "time_limit"


async def test_cancelling_ends_the_process(tmp_path: Path) -> None:
    source = silence(tmp_path / "a", 3.9)
    others = set(psutil.Process().children(recursive=True))  # servers of other tests
    started = asyncio.Event()
    plan = formats.plan("flac", "high")
    assert isinstance(plan, Plan)
    task = asyncio.create_task(transcode(plan, source, tmp_path / "b", LIMITS, lambda share: started.set()))
    async with asyncio.timeout(30):
        await started.wait()
    children = set(psutil.Process().children(recursive=True)) - others
    assert any(child.name().startswith("ffmpeg") for child in children)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not [child for child in children if child.is_running() and child.status() != psutil.STATUS_ZOMBIE]


async def test_the_child_knows_no_secret(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLUICEWAY_S3_SECRET_KEY", "hush")
    source = silence(tmp_path / "a", 3.9)
    async with running(["-i", "fd:", "-f", "flac", "-y", f"file:{tmp_path / 'b'}"], source, LIMITS) as run:
        async for _ in run.progress():
            break
        (child,) = [c for c in psutil.Process().children() if c.name().startswith("ffmpeg")]
        assert "hush" not in "".join(child.environ().values())
        assert child.rlimit(psutil.RLIMIT_CORE) == (0, 0)
