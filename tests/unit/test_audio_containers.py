"""Recordings played by ffmpeg, which knows nothing of us: PCM comes back bit for bit, Opus plays, sizes are right."""

from __future__ import annotations

import hashlib
import io
import os
import re
import subprocess
from pathlib import Path

import imageio_ffmpeg
import numpy as np
import pytest

from streams.audio.containers import flac, wav
from streams.audio.containers.errors import BadAudio
from streams.audio.containers.flac import HEAD_BYTES, FlacEncoder
from streams.audio.containers.ogg import PageReader
from streams.audio.containers.ogg_opus import OggOpusReader, OggOpusWriter
from streams.audio.containers.recording import new_recording
from streams.audio.containers.wav import WavReader
from streams.audio.containers.window import window_wav
from tests.audio import SPEECH, SPEECH_FLAC, blocks, decoded, encoded, ffmpeg, needs_speech, sound
from topics.audio import Format, Open, Store, Tier

SHAPES = [(8_000, 1), (16_000, 1), (44_100, 2), (48_000, 6), (11_025, 3), (96_000, 8), (65_540, 1)]


def probed(data: bytes, tmp_path: Path) -> str:
    """What ffmpeg says of a file."""
    path = tmp_path / "probed"
    path.write_bytes(data)
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-hide_banner", "-i", str(path)]
    return subprocess.run(command, capture_output=True, check=False, text=True, timeout=60).stderr


def opened(format: Format, store: Store, rate: int = 16_000, channels: int = 1) -> Open:
    return Open("s-1", "", format, rate, channels, Tier.STANDARD, store)


def flac_of(pcm: bytes, rate: int, channels: int, block_bytes: int) -> bytes:
    """A stream whose head is sent last, as its first part is."""
    encoder = FlacEncoder(rate, channels)
    sent = b"".join(encoder.add(block) for block in blocks(pcm, block_bytes)) + encoder.finish()
    assert sent[:HEAD_BYTES] != encoder.head, "the head was known before the end"
    return encoder.head + sent[HEAD_BYTES:]


@pytest.mark.parametrize(("rate", "channels"), SHAPES)
def test_flac_is_bit_exact_and_bears_its_md5(rate: int, channels: int) -> None:
    pcm = sound(1.3, rate, channels)
    file = flac_of(pcm, rate, channels, 2 * channels * 777)
    assert file[26:42] == hashlib.md5(pcm).digest()
    assert decoded(file) == pcm
    # The two decoders agree with each other and with a third party's encoder.
    theirs = encoded(pcm, rate, channels, "-c:a", "flac", "-f", "flac")
    assert b"".join(flac.decode(io.BytesIO(theirs))) == pcm


def test_flac_says_how_long_it_is_and_how_large_its_frames_are(tmp_path: Path) -> None:
    file = flac_of(sound(2.5, 16_000, 1), 16_000, 1, 4_096)
    assert "Duration: 00:00:02.50" in probed(file, tmp_path)
    least, most = int.from_bytes(file[12:15], "big"), int.from_bytes(file[15:18], "big")
    assert 0 < least <= most < len(file)
    assert int.from_bytes(file[8:10], "big") >= 16


def test_a_long_flac_takes_no_memory_for_its_length() -> None:
    """What is held after ten minutes is what was held after one."""
    encoder, minute = FlacEncoder(16_000, 1), sound(60, 16_000, 1)
    most = 0
    for _ in range(10):
        for block in blocks(minute, 4_096):
            most = max(most, len(encoder.add(block)))
    assert most < 200_000
    encoder.finish()
    assert encoder.samples == 10 * 60 * 16_000 and len(encoder.head) == HEAD_BYTES


@pytest.mark.parametrize(("at", "match"), [(30, "of MD5"), (25, "that can be read; it says")])
def test_flac_that_is_not_what_it_says_is_refused(at: int, match: str) -> None:
    """One bit of its MD5, and of its number of samples."""
    file = bytearray(flac_of(sound(1, 16_000, 1), 16_000, 1, 4_096))
    file[at] ^= 1
    with pytest.raises(BadAudio, match=match):
        list(flac.decode(io.BytesIO(file)))


@needs_speech
def test_speech_comes_back_bit_for_bit() -> None:
    reader, recording = WavReader(), new_recording(opened(Format.PCM_S16LE, Store.FLAC), 0)
    sent, pcm = [recording.start()], []
    for block in blocks(SPEECH.read_bytes(), 5_000):
        pcm.append(reader.feed(block))
        sent.append(recording.add(pcm[-1]))
    reader.finish()
    sent.append(recording.finish())
    file = recording.head + b"".join(sent)[len(recording.head) :]
    assert (reader.rate, reader.channels) == (16_000, 1)
    assert decoded(file) == b"".join(pcm) == decoded(SPEECH.read_bytes())
    assert recording.md5 == hashlib.md5(b"".join(pcm)).hexdigest() and recording.duration_ms == 60_000


@needs_speech
def test_a_flac_stream_as_received_is_the_stream() -> None:
    data = SPEECH_FLAC.read_bytes()
    recording = new_recording(opened(Format.FLAC, Store.ASIS), 0)
    file = b"".join([recording.start(), *(recording.add(b) for b in blocks(data, 1_000)), recording.finish()])
    assert file == data and recording.md5 == hashlib.md5(data).hexdigest()
    assert recording.duration_ms == 11_000


# -- WAV ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("rate", "channels"), SHAPES)
def test_wav_is_read_by_ffmpeg_and_from_ffmpeg(rate: int, channels: int) -> None:
    pcm = sound(0.3, rate, channels)
    assert decoded(wav.wav_of(rate, channels, pcm)) == pcm
    reader = WavReader()
    piped = encoded(pcm, rate, channels, "-f", "wav")  # to a pipe: its sizes are unknown
    assert b"".join(reader.feed(block) for block in blocks(piped, 100)) == pcm
    reader.finish()
    assert (reader.rate, reader.channels) == (rate, channels)


def test_a_window_of_nothing_is_a_wav() -> None:
    reader = WavReader()
    assert reader.feed(wav.wav_of(16_000, 1, b"")) == b""
    reader.finish()


def test_over_four_gigabytes_a_wav_is_rf64(tmp_path: Path) -> None:
    """Five hours of 48 kHz six-channel PCM, of which the file system keeps only the first second."""
    rate, channels = 48_000, 6
    size = 5 * 3_600 * rate * channels * 2
    pcm = sound(1, rate, channels)
    header = wav.header(rate, channels, size)
    path = tmp_path / "long.wav"
    path.write_bytes(header + pcm)
    os.truncate(path, len(header) + size)
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-hide_banner", "-i", str(path)]
    said = subprocess.run(command, capture_output=True, check=False, text=True, timeout=60).stderr
    assert header[:4] == b"RF64" and "Duration: 05:00:00.00" in said
    assert ffmpeg("-i", str(path), "-t", "1", "-f", "s16le", "pipe:1") == pcm
    reader = WavReader()
    reader.feed(header + pcm)
    with pytest.raises(BadAudio, match=f"ends {size - len(pcm)} bytes before"):
        reader.finish()


@pytest.mark.parametrize(("size", "name"), [(0xFFFF_FFFF - 38, b"RIFF"), (0xFFFF_FFFF - 35, b"RF64")])
def test_the_last_size_that_32_bits_hold(size: int, name: bytes) -> None:
    size -= size % 2
    header = wav.header(8_000, 1, size)
    assert header[:4] == name
    reader = WavReader()
    reader.feed(header)
    with pytest.raises(BadAudio, match=f"ends {size} bytes before"):
        reader.finish()


@pytest.mark.parametrize(
    ("data", "match"),
    [
        (b"", "before its audio"),
        (b"RIFF", "before its audio"),
        (b"ID3\x04" + bytes(40), "begins with b'ID3"),
        (b"RIFX\0\0\0\0WAVE", "begins with"),
        (b"RIFF\0\0\0\0AVI ", "begins with"),
        (wav.wav_of(8_000, 1, b"ab")[:-1], "ends 1 bytes before"),
        (wav.header(8_000, 1, 0).replace(b"fmt ", b"fmX "), "before its format"),
        (wav.header(8_000, 1, 0)[:34] + b"\x18\0data\0\0\0\0", "24 bits"),
        (b"RIFF\0\0\0\0WAVEfmt \xff\xff\xff\x7f", "2147483647 bytes"),
    ],
)
def test_what_is_no_wav_says_why(data: bytes, match: str) -> None:
    reader = WavReader()
    with pytest.raises(BadAudio, match=match):
        reader.feed(data)
        reader.finish()


# -- Ogg Opus ----------------------------------------------------------------------------------------------------------

OPUS = ("-c:a", "libopus", "-f", "ogg")


def packets_of(file: bytes) -> tuple[OggOpusReader, list[bytes]]:
    reader = OggOpusReader()
    packets = [packet for block in blocks(file, 999) for packet in reader.feed(block)]
    reader.finish()
    return reader, packets


def ogg_of(packets: list[bytes], rate: int, channels: int, pre_skip: int) -> bytes:
    writer = OggOpusWriter(rate, channels, 0x5EED, pre_skip)
    return b"".join([writer.start(), *(writer.add(packet) for packet in packets), writer.finish()])


@pytest.mark.parametrize("channels", [1, 2, 3, 4, 5, 6, 8])
@pytest.mark.parametrize("options", [(), ("-frame_duration", "120"), ("-frame_duration", "2.5", "-b:a", "200k")])
def test_opus_packets_play_as_they_did(channels: int, options: tuple[str, ...], tmp_path: Path) -> None:
    theirs = encoded(sound(2.2, 48_000, channels), 48_000, channels, *options, *OPUS)
    reader, packets = packets_of(theirs)
    assert reader.head is not None and reader.head.channels == channels
    ours = ogg_of(packets, reader.head.rate, channels, reader.head.pre_skip)
    copied = ("-map", "0:a", "-c", "copy", "-f", "data")
    assert ffmpeg("-i", "pipe:0", *copied, "pipe:1", data=ours) == b"".join(packets)
    # Their last page cuts the end of the last packet off; ours plays all of it.
    played, wanted = decoded(ours), decoded(theirs)
    assert wanted and played.startswith(wanted) and len(played) - len(wanted) < 0.12 * 48_000 * 2 * channels
    assert packets_of(ours)[1] == packets
    assert re.search(r"Duration: 00:00:02\.2\d.*\n.*Audio: opus, 48000 Hz", probed(ours, tmp_path))


def test_a_page_lasts_about_a_second() -> None:
    """So that a player may seek, and a reader who comes late need not wait."""
    pages = PageReader().feed(ogg_of([bytes([19 << 3, 0])] * 500, 48_000, 1, 312))
    granules = [page.granule for page in pages[2:]]
    assert granules == [48_000 * second for second in range(1, 11)]


def test_a_wav_recording_whose_size_was_told_wrong_is_refused() -> None:
    recording = new_recording(opened(Format.PCM_S16LE, Store.WAV), 6)
    recording.add(b"abcd")
    with pytest.raises(BadAudio, match="4 bytes of PCM came; the header says 6"):
        recording.finish()


def test_opus_of_seven_channels_is_refused() -> None:
    with pytest.raises(BadAudio, match="7 channels"):
        OggOpusWriter(48_000, 7, 0)


def test_an_opus_recording_plays(tmp_path: Path) -> None:
    _, packets = packets_of(encoded(sound(3, 16_000, 1), 16_000, 1, *OPUS))
    recording = new_recording(opened(Format.OPUS, Store.ASIS), 0)
    file = b"".join([recording.start(), *(recording.add(packet) for packet in packets), recording.finish()])
    assert recording.md5 == hashlib.md5(b"".join(packets)).hexdigest()
    assert recording.duration_ms == 20 * len(packets)
    assert len(decoded(file)) == 2 * (960 * len(packets) - 312)
    assert "Audio: opus, 48000 Hz, mono" in probed(file, tmp_path)


def test_an_opus_recording_without_packets_ends() -> None:
    recording = new_recording(opened(Format.OPUS, Store.ASIS), 0)
    assert packets_of(recording.start() + recording.finish())[1] == []


def test_opus_beside_another_stream_is_found() -> None:
    """A video's sound: the other stream's pages are passed over."""
    file = ffmpeg(
        *("-f", "lavfi", "-i", "testsrc=size=64x64:rate=5:duration=1", "-f", "lavfi", "-i", "sine=duration=1"),
        *("-c:v", "libvpx", "-c:a", "libopus", "-f", "ogg", "pipe:1"),
    )
    reader, packets = packets_of(file)
    assert reader.head is not None and len(packets) in (50, 51)


@pytest.mark.parametrize(
    ("file", "match"),
    [
        (b"", "no Opus stream"),
        (b"RIFFxxxx", "no Ogg page at byte 0"),
        (b"OggS", "4 bytes into the page at byte 0"),
        (b"OggS\x01" + bytes(40), "version 1"),
        (b"OggS" + bytes(40), "checksum"),
    ],
)
def test_what_is_no_ogg_opus_says_why(file: bytes, match: str) -> None:
    with pytest.raises(BadAudio, match=match):
        packets_of(file)


def test_ogg_of_another_codec_has_no_opus() -> None:
    file = encoded(sound(0.5, 16_000, 1), 16_000, 1, "-c:a", "flac", "-f", "ogg")
    with pytest.raises(BadAudio, match="no Opus stream"):
        packets_of(file)


@pytest.mark.parametrize("packet", [b"", b"\x03", b"\x03\x00", b"\x1b\x3f"])
def test_what_is_no_packet_is_not_written(packet: bytes) -> None:
    with pytest.raises(BadAudio, match="no Opus packet"):
        OggOpusWriter(48_000, 1, 0).add(packet)


# -- the window --------------------------------------------------------------------------------------------------------


def pcm_of(file: bytes) -> tuple[int, int, bytes]:
    reader = WavReader()
    pcm = reader.feed(file)
    reader.finish()
    return reader.rate, reader.channels, pcm


@pytest.mark.parametrize("channels", [1, 2, 6])
def test_a_window_of_pcm_is_its_bytes(channels: int) -> None:
    pcm = sound(0.5, 16_000, channels)
    found = window_wav(opened(Format.PCM_S16LE, Store.FLAC, 16_000, channels), list(blocks(pcm, 4_096)))
    assert pcm_of(found) == (16_000, channels, pcm)


@pytest.mark.parametrize("channels", [1, 2])
def test_a_window_of_opus_sounds_as_the_whole_does(channels: int) -> None:
    """From the middle of a session; a decoder needs 80 ms to find its feet (RFC 7845, section 4.6)."""
    whole = encoded(sound(4, 48_000, channels), 48_000, channels, *OPUS)
    _, packets = packets_of(whole)
    rate, found_channels, pcm = pcm_of(window_wav(opened(Format.OPUS, Store.ASIS, 48_000, channels), packets[100:150]))
    assert (rate, found_channels, len(pcm)) == (48_000, channels, 48_000 * 2 * channels)
    start, settled = (100 * 960 - 312) * 2 * channels, 80 * 48 * 2 * channels
    wanted = np.frombuffer(decoded(whole)[start + settled :][: len(pcm) - settled], "<i2").astype(float)
    heard = np.frombuffer(pcm[settled:], "<i2").astype(float)
    assert np.sqrt(np.mean((heard - wanted) ** 2)) < 0.02 * np.sqrt(np.mean(wanted**2))


@pytest.mark.parametrize(("rate", "channels"), SHAPES)
def test_a_window_of_flac_is_a_stretch_of_its_pcm(rate: int, channels: int) -> None:
    pcm = sound(2, rate, channels)
    for file in (flac_of(pcm, rate, channels, 50_000), encoded(pcm, rate, channels, "-c:a", "flac", "-f", "flac")):
        chunks = list(blocks(file, 1_000))
        session = opened(Format.FLAC, Store.ASIS, rate, channels)
        assert pcm_of(window_wav(session, chunks)) == (rate, channels, pcm)
        found = pcm_of(window_wav(session, chunks[len(chunks) // 4 : len(chunks) * 3 // 4]))
        assert found[:2] == (rate, channels)
        assert len(found[2]) > len(pcm) // 4 and found[2] in pcm


def test_what_only_looks_like_a_frame_is_passed_over() -> None:
    """A frame's first bytes occur within frames; its checksum tells."""
    file = flac_of(sound(0.5, 16_000, 1), 16_000, 1, 4_096)
    first = flac.frame_header(file)
    assert first is not None and first[1] == 16
    frames = file[first[0] :]
    for like in (b"\xff", b"\xff\xff", frames[:5] + bytes([frames[5] ^ 1]), b"\xff\xf8\x59\x0c\x01\x00"):
        assert flac.frame_header(like + frames) == (len(like), 16)
    for cut_off in (b"", frames[:1], frames[:5], frames[1:40]):
        assert flac.frame_header(cut_off) is None


@needs_speech
def test_a_window_of_recorded_flac_is_a_stretch_of_it() -> None:
    file = SPEECH_FLAC.read_bytes()
    rate, channels, pcm = pcm_of(window_wav(opened(Format.FLAC, Store.ASIS), [file]))
    assert pcm == decoded(file)
    session = opened(Format.FLAC, Store.ASIS, rate, channels)
    found = pcm_of(window_wav(session, list(blocks(file[400_000:800_000], 4_096))))
    assert found[:2] == (rate, channels) and len(found[2]) > len(pcm) // 4 and found[2] in pcm


@pytest.mark.parametrize("format", [Format.FLAC, Format.OPUS])
@pytest.mark.parametrize("chunks", [[], [b"\xff" * 4_096], [b"fLaC" + bytes(50)], [b"\xff\xf8\x19\x08" + bytes(90)]])
def test_a_window_of_what_is_none_is_an_error_or_silence(format: Format, chunks: list[bytes]) -> None:
    try:
        _, _, pcm = pcm_of(window_wav(opened(format, Store.ASIS), chunks))
    except BadAudio:
        return
    assert (format is Format.OPUS and not any(pcm)) or len(pcm) < 100_000
