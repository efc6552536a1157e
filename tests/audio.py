"""Real audio for tests: ffmpeg, made-up and recorded sound, and what a file's bytes decode to."""

from __future__ import annotations

import itertools
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path

import imageio_ffmpeg
import numpy as np
import pytest

DATA = Path(__file__).parents[2] / "shared" / "data"
SPEECH = DATA / "speech_60s_16k_mono.wav"
SPEECH_FLAC = DATA / "speech_11s.flac"
_LAYOUTS = ("mono", "stereo", "3.0", "quad", "5.0", "5.1", "6.1", "7.1")
needs_speech = pytest.mark.skipif(not DATA.is_dir(), reason="no recorded speech in ../shared/data")


def ffmpeg(*arguments: str, data: bytes = b"") -> bytes:
    """What ffmpeg writes to its standard output, having found no error in its input."""
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-hide_banner", "-nostdin", "-v", "error", *arguments]
    if data:
        command.remove("-nostdin")
    done = subprocess.run(command, input=data, capture_output=True, check=False, timeout=60)
    assert done.returncode == 0 and not done.stderr, done.stderr.decode()
    return done.stdout


def decoded(data: bytes, *options: str) -> bytes:
    """The PCM of a file, as ffmpeg decodes it."""
    return ffmpeg("-i", "pipe:0", *options, "-f", "s16le", "pipe:1", data=data)


def encoded(pcm: bytes, rate: int, channels: int, *options: str) -> bytes:
    """PCM as ffmpeg encodes it to a pipe."""
    shape = ("-f", "s16le", "-ar", str(rate), "-ch_layout", _LAYOUTS[channels - 1])
    return ffmpeg(*shape, "-i", "pipe:0", *options, "pipe:1", data=pcm)


def sound(seconds: float, rate: int, channels: int) -> bytes:
    """PCM that is neither silence nor noise: a swelling chord, other in each channel."""
    at = np.arange(int(seconds * rate))[:, None] / rate
    tones = 220.0 * (1 + np.arange(channels))[None, :]
    wave = np.sin(2 * np.pi * tones * at) * np.sin(np.pi * at) + 0.2 * np.sin(2 * np.pi * 3.7 * tones * at)
    pcm: bytes = (12_000 * wave).astype("<i2").tobytes()
    return pcm


def blocks(data: bytes, size: int) -> Iterator[bytes]:
    """`data` in blocks of `size`."""
    for at in range(0, len(data), size):
        yield data[at : at + size]


def cut(data: bytes, cuts: Sequence[int]) -> Iterator[bytes]:
    """`data` cut at these places, wherever they lie."""
    places = [0, *sorted(min(place, len(data)) for place in cuts), len(data)]
    for begin, end in itertools.pairwise(places):
        yield data[begin:end]


def ogg_packets(file: bytes) -> list[bytes]:
    """The packets of an Ogg stream, headers and all, by RFC 3533 alone."""
    packets, begun, at = [], b"", 0
    while at < len(file):
        assert file[at : at + 4] == b"OggS"
        lacing = file[at + 27 : at + 27 + file[at + 26]]
        at += 27 + len(lacing)
        for size in lacing:
            begun += file[at : at + size]
            at += size
            if size < 255:
                packets.append(begun)
                begun = b""
    assert not begun
    return packets
