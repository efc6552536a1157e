"""The demo's clip: a recorded one where the data folder beside the repository has it, else one that ffmpeg makes; and what
ffmpeg finds in a file."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from compose.demo.speech import DATA
from compose.ffmpeg import FfmpegFailed, ffmpeg

CLIP = "clip.webm"
MADE_S = 30
_PICTURE = f"testsrc2=size=480x270:rate=30:duration={MADE_S}"
_SOUND = f"sine=frequency=440:sample_rate=44100:duration={MADE_S}"
_QUICK = ("-c:v", "libvpx", "-deadline", "realtime", "-cpu-used", "8", "-b:v", "600k")

_CONTAINER = re.compile(r"^Input #0, (.*?), from", re.MULTILINE)
_DURATION = re.compile(r"^  Duration: (\d+):(\d\d):(\d\d\.\d\d)", re.MULTILINE)
_STREAM = re.compile(r"^  Stream #0:\d+[^\n]*?: (Audio|Video): (\w+)", re.MULTILINE)


@dataclass(frozen=True)
class Media:
    """What a file is: its container, how long it plays, and the codecs of its sound and picture."""

    container: str
    seconds: float
    audio: str | None
    video: str | None


async def clip_file(folder: Path, data: Path = DATA) -> Path:
    """The recorded clip, or one made in `folder`. Raises FfmpegFailed."""
    recorded = data / CLIP
    if recorded.is_file():
        return recorded
    made = folder / f"made-up-{MADE_S}s.webm"
    async with ffmpeg("-y", "-f", "lavfi", "-i", _PICTURE, "-f", "lavfi", "-i", _SOUND, *_QUICK, str(made)) as running:
        await running.check()
    return made


async def media_of(file: Path) -> Media:
    """Play a file from its beginning to its end, and say what it is. Raises FfmpegFailed."""
    play = ("-xerror", "-i", f"file:{file}", "-f", "null", "-")
    async with ffmpeg(*play) as running:
        await running.check()
    async with ffmpeg("-t", "0", *play, level="info") as running:
        said, _, _ = (await running.said()).partition("\nOutput #0")
    container, duration, codecs = _CONTAINER.search(said), _DURATION.search(said), dict(_STREAM.findall(said))
    if container is None or duration is None:
        raise FfmpegFailed(f"{file.name} does not say what it is or how long it plays")
    hours, minutes, seconds = duration.groups()
    length_s = int(hours) * 3_600 + int(minutes) * 60 + float(seconds)
    return Media(container[1], length_s, codecs.get("Audio"), codecs.get("Video"))
