"""Small media files that ffmpeg makes, and what it says of others."""

from __future__ import annotations

import re
import struct
import subprocess
from dataclasses import dataclass
from pathlib import Path

from compose.ffmpeg import executable

_VIDEO = ["-f", "lavfi", "-i", "testsrc2=size=320x180:rate=15"]
_SOUND = ["-f", "lavfi", "-i", "sine=frequency=440:sample_rate=44100"]


@dataclass(frozen=True)
class Described:
    """Container, seconds, codecs and picture size (0, 0 without one), as ffmpeg has them."""

    container: str
    seconds: float
    audio: str | None
    video: str | None
    size: tuple[int, int]


def make(to: Path, seconds: float = 2.0, *arguments: str, video: bool = True, sound: bool = True) -> Path:
    """A file of a moving picture and a tone, in what its name says."""
    inputs = [*(_VIDEO if video else []), *(_SOUND if sound else [])]
    quick = ["-c:v", "libvpx", "-deadline", "realtime", "-cpu-used", "8"] if to.suffix == ".webm" and video else []
    command = [executable(), "-v", "error", "-nostdin", *inputs, "-t", str(seconds), *quick, *arguments, "-y", str(to)]
    subprocess.run(command, check=True, stdin=subprocess.DEVNULL)
    return to


def live(to: Path, seconds: float) -> Path:
    """A tone in FLAC as it is written to where nothing can be gone back to: it does not say how long it is."""
    command = [executable(), "-v", "error", "-nostdin", *_SOUND, "-t", str(seconds), "-f", "flac", "pipe:1"]
    done = subprocess.run(command, check=True, stdin=subprocess.DEVNULL, capture_output=True)
    to.write_bytes(done.stdout)
    return to


def describe(file: Path) -> Described:
    """Look into a file, and decode all of it: a result plays from its beginning to its end."""
    command = [executable(), "-hide_banner", "-nostdin", "-xerror", "-i", str(file), "-f", "null", "-"]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, check=True)
    said = done.stderr.decode(errors="replace").partition("Output #0")[0]
    container = re.search(r"^Input #0, (.*?), from", said, re.MULTILINE)
    duration = re.search(r"Duration: (\d+):(\d+):(\d+\.\d+)", said)
    audio, video = re.search(r": Audio: (\w+)", said), re.search(r": Video: (\w+).*?(\d{2,})x(\d{2,})", said)
    assert container is not None and duration is not None, said
    hours, minutes, seconds = duration.groups()
    return Described(
        container[1],
        int(hours) * 3_600 + int(minutes) * 60 + float(seconds),
        audio and audio[1],
        video and video[1],
        (int(video[2]), int(video[3])) if video else (0, 0),
    )


def silence(to: Path, hours: float, rate: int = 8_000) -> Path:
    """Hours of silence that take no room on the disk: a WAV of 8-bit samples, so many a second."""
    return _wav(to, int(hours * 3_600 * rate), rate, 1, 8)


def large(to: Path, size_mb: int) -> Path:
    """A WAV of so many MB that takes no room on the disk and is soon converted: 1.5 MB play for a second."""
    return _wav(to, size_mb * 1_000_000, 192_000, 2, 32)


def _wav(to: Path, size: int, rate: int, channels: int, bits: int) -> Path:
    frame = channels * bits // 8
    size -= size % frame
    form = (b"fmt ", 16, 1, channels, rate, rate * frame, frame, bits)
    header = struct.pack("<4sI4s4sIHHIIHH4sI", b"RIFF", size + 36, b"WAVE", *form, b"data", size)
    with to.open("wb") as file:
        file.write(header)
        file.truncate(len(header) + size)
    return to


def quiet(to: Path, hours: float) -> Path:
    """Hours of silence as a small file, in what its name says: long work that is soon sent."""
    source = silence(to.with_suffix(".wav"), hours)
    subprocess.run([executable(), "-v", "error", "-nostdin", "-i", str(source), "-y", str(to)], check=True)
    source.unlink()
    return to
