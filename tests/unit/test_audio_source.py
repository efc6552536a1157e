"""A file's sound as chunks: nothing lost, nothing added, whatever the file is, and a clear word where that cannot be."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import psutil
import pytest

from compose.audio_source import FLAC_CHUNK_BYTES, SourceChunk, SourceError, SourceInfo, probe, read_chunks
from streams.audio.containers import wav
from streams.audio.containers.ogg_opus import OggOpusReader
from tests.audio import DATA, SPEECH, SPEECH_FLAC, decoded, encoded, ffmpeg, needs_speech, sound
from topics.audio import Format

RATE = 16_000
PCM = sound(1.0, RATE, 1)


async def taken(
    path: Path, format: Format = Format.PCM_S16LE, rate: int = RATE, channels: int = 1
) -> list[SourceChunk]:
    found = [chunk async for chunk in read_chunks(path, format, rate, channels)]
    assert [chunk.seq for chunk in found] == list(range(len(found)))
    return found


def joined(chunks: list[SourceChunk]) -> bytes:
    return b"".join(chunk.data for chunk in chunks)


@pytest.fixture
def made(tmp_path: Path) -> Path:
    """A WAV of one second."""
    path = tmp_path / "-made file.wav"
    path.write_bytes(wav.wav_of(RATE, 1, PCM))
    return path


async def test_pcm_goes_in_chunks_of_128_ms(made: Path) -> None:
    chunks = await taken(made)
    assert joined(chunks) == PCM
    assert [len(chunk.data) for chunk in chunks] == [4_096] * 7 + [len(PCM) - 7 * 4_096]
    assert [chunk.at_ms for chunk in chunks] == [128 * seq for seq in range(8)]


@pytest.mark.parametrize("name", ["speech 12:30.wav", "-i.wav", "http:speech.wav", "%d.wav", "é\n.wav"])
async def test_a_file_may_have_any_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.chdir(tmp_path)
    path = Path(name)
    path.write_bytes(wav.wav_of(RATE, 1, PCM))
    assert joined(await taken(path)) == PCM


@pytest.mark.parametrize(("rate", "channels"), [(8_000, 1), (44_100, 2), (48_000, 6)])
async def test_pcm_is_made_to_the_rate_and_channels_asked_for(made: Path, rate: int, channels: int) -> None:
    chunks = await taken(made, rate=rate, channels=channels)
    assert abs(len(joined(chunks)) - rate * 2 * channels) <= 40 * 2 * channels
    assert {len(chunk.data) % (2 * channels) for chunk in chunks} == {0}
    assert len(chunks[0].data) == rate * 128 // 1000 * 2 * channels


@pytest.mark.parametrize("extension", ["flac", "mp3", "m4a", "ogg", "mkv"])
async def test_whatever_ffmpeg_reads_is_sent(made: Path, tmp_path: Path, extension: str) -> None:
    path = tmp_path / f"other.{extension}"
    ffmpeg("-i", f"file:{made}", str(path))
    assert joined(await taken(path)) == ffmpeg("-i", str(path), "-ar", str(RATE), "-f", "s16le", "pipe:1")


async def test_opus_packets_are_passed_on_as_they_are(tmp_path: Path) -> None:
    file = encoded(PCM, RATE, 1, "-c:a", "libopus", "-f", "ogg")
    reader = OggOpusReader()
    packets = reader.feed(file)
    path = tmp_path / "speech.opus"
    path.write_bytes(file)
    in_another = tmp_path / "speech.webm"
    ffmpeg("-i", str(path), "-c", "copy", str(in_another))
    for source in (path, in_another):
        chunks = await taken(source, Format.OPUS)
        assert [chunk.data for chunk in chunks] == packets
        assert [chunk.at_ms for chunk in chunks] == [20 * seq for seq in range(len(packets))]


async def test_flac_is_passed_on_as_it_is(made: Path, tmp_path: Path) -> None:
    path, in_another = tmp_path / "speech.flac", tmp_path / "speech.mkv"
    ffmpeg("-i", f"file:{made}", str(path))
    ffmpeg("-i", str(path), "-c", "copy", str(in_another))
    chunks = await taken(path, Format.FLAC)
    assert joined(chunks) == path.read_bytes()
    assert {len(chunk.data) for chunk in chunks[:-1]} == {FLAC_CHUNK_BYTES}
    times = [chunk.at_ms for chunk in chunks]
    assert times == sorted(times) and times[0] == 0 and times[-1] < 1_000
    assert decoded(joined(await taken(in_another, Format.FLAC))) == PCM


async def test_flac_that_does_not_say_how_long_it_is_has_times_too(tmp_path: Path) -> None:
    path = tmp_path / "piped.flac"
    path.write_bytes(encoded(PCM, RATE, 1, "-f", "flac"))
    assert (await probe(path)).duration_ms is None
    chunks = await taken(path, Format.FLAC)
    assert 500 < chunks[-1].at_ms < 1_000
    assert joined(chunks) == path.read_bytes()


async def test_what_a_file_is(made: Path, tmp_path: Path) -> None:
    assert await probe(made) == SourceInfo("pcm_s16le", RATE, 1, 1_000)
    surround = tmp_path / "surround.ogg"
    surround.write_bytes(encoded(sound(0.5, 48_000, 6), 48_000, 6, "-c:a", "libopus", "-f", "ogg"))
    found = await probe(surround)
    assert (found.codec, found.rate, found.channels) == ("opus", 48_000, 6)


@needs_speech
async def test_recorded_speech_is_sent_bit_for_bit() -> None:
    assert joined(await taken(SPEECH)) == decoded(SPEECH.read_bytes())
    info = await probe(SPEECH_FLAC)
    assert joined(await taken(SPEECH_FLAC, Format.FLAC, info.rate, info.channels)) == SPEECH_FLAC.read_bytes()
    video = await probe(DATA / "clip.webm")
    assert video.duration_ms and await taken(DATA / "clip.webm")


@pytest.mark.parametrize("format", Format)
@pytest.mark.parametrize("content", [b"", b"no sound at all\n" * 50, bytes(5_000)], ids=["empty", "text", "zeros"])
async def test_a_file_without_sound_says_so(tmp_path: Path, format: Format, content: bytes) -> None:
    path = tmp_path / "none.bin"
    path.write_bytes(content)
    with pytest.raises(SourceError, match=r"none\.bin: no sound that ffmpeg can read: "):
        await taken(path, format)


async def test_a_picture_has_no_sound(tmp_path: Path) -> None:
    path = tmp_path / "picture.png"
    ffmpeg("-f", "lavfi", "-i", "testsrc=size=64x64", "-frames:v", "1", str(path))
    for format in Format:
        with pytest.raises(SourceError, match=r"picture\.png: no sound"):
            await taken(path, format)


@pytest.mark.parametrize("format", Format)
async def test_a_file_that_is_not_there_says_so(tmp_path: Path, format: Format) -> None:
    with pytest.raises(SourceError, match=r"absent\.wav: no such file"):
        await taken(tmp_path / "absent.wav", format)


async def test_what_cannot_be_passed_on_as_it_is_says_what_would_do(made: Path, tmp_path: Path) -> None:
    for format in (Format.OPUS, Format.FLAC):
        with pytest.raises(SourceError, match=f"is pcm_s16le, not {format}; any file can be sent as pcm_s16le"):
            await taken(made, format)
    path = tmp_path / "speech.flac"
    ffmpeg("-i", f"file:{made}", str(path))
    with pytest.raises(SourceError, match="of 16000 Hz, not 8000"):
        await taken(path, Format.FLAC, rate=8_000)
    with pytest.raises(SourceError, match="has 1 channels, not 2"):
        await taken(path, Format.FLAC, channels=2)


async def test_a_file_without_a_sample_is_empty(tmp_path: Path) -> None:
    path = tmp_path / "empty.wav"
    path.write_bytes(wav.wav_of(RATE, 1, b""))
    with pytest.raises(SourceError, match=r"sound track is empty|no sound"):
        await taken(path)


async def test_a_long_file_is_not_read_ahead_and_a_reader_may_leave(tmp_path: Path) -> None:
    """An hour of sound of which three chunks are taken: ffmpeg waits, and is gone afterwards."""
    path = tmp_path / "hour.wav"
    path.write_bytes(wav.header(RATE, 1, 3_600 * RATE * 2))
    os.truncate(path, 44 + 3_600 * RATE * 2)
    chunks = read_chunks(path, Format.PCM_S16LE, RATE, 1)
    for _ in range(3):
        await anext(chunks)
    (child,) = _ffmpegs()
    await asyncio.sleep(0.5)
    assert child.is_running()
    before = child.io_counters().read_chars
    assert before < 20_000_000
    await asyncio.sleep(0.3)
    assert child.io_counters().read_chars == before
    await chunks.aclose()
    assert _ffmpegs() == []


def _ffmpegs() -> list[psutil.Process]:
    return [child for child in psutil.Process().children() if "ffmpeg" in child.name()]
