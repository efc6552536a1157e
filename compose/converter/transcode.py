"""One conversion of a file that nobody vouches for: limited, watched, and judged by what came out.

The source is ffmpeg's standard input and no other file can be named: of its protocols only `fd` is open to the input, so
that a playlist, however it is dressed up, leads nowhere; and only containers of audio and video are recognised at all.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from compose.converter.limits import ConverterLimits
from compose.converter.running import reason, running
from streams.files.converting import ConversionFailed
from streams.files.formats import Plan

#: Demuxers that read one file and follow nothing.
DEMUXERS = (
    "aac,ac3,aiff,amr,ape,asf,au,avi,caf,dts,eac3,flac,flv,matroska,webm,mov,mp4,m4a,3gp,3g2,mj2,mp3,mpc,mpc8,mpeg,mpegts,"
    "mpegvideo,h264,hevc,ivf,m4v,mxf,nut,ogg,rm,tta,voc,w64,wav,wv,gif"
)
#: What a result may lack of its source's end: containers round, and a last packet may be short.
_SHORT_MS, _SHORT_SHARE = 1_500, 0.02
# A file's own words are printed further in than these.
_DURATION = re.compile(r"^  Duration: (\d+):(\d\d):(\d\d)\.(\d\d)", re.MULTILINE)
_STREAM = re.compile(r"^  Stream #0:\d+[^\n]*?: (Audio|Video): ", re.MULTILINE)


@dataclass(frozen=True)
class Probe:
    """What a source is: how long it plays (None if its container does not say) and what it holds."""

    duration_ms: int | None
    audio: bool
    video: bool


async def probe(source: Path, limits: ConverterLimits) -> Probe:
    """Look at a source. Raises ConversionFailed for what is no media file, or plays too long."""
    if source.stat().st_size == 0:
        raise ConversionFailed("not_media", "the source is empty")
    async with running(_input(), source, limits) as run:
        said = await run.said()
        run.check_alive()
    # Of the input only, which is described before anything is said of the missing output.
    described, opened, _ = said.partition("\nAt least one output file")
    if not re.search(r"^Input #0, ", described, re.MULTILINE):
        if opened:
            raise ConversionFailed("not_media", "the source has more streams, or more faults, than can be told")
        playlist = "Format not on whitelist" in said
        why = "files of its kind name other files, or hold neither" if playlist else reason(said)
        raise ConversionFailed("not_media", f"the source is no audio or video file: {why}")
    duration = _DURATION.search(described)
    kinds = set(_STREAM.findall(described))
    found = Probe(_milliseconds(duration) if duration else None, "Audio" in kinds, "Video" in kinds)
    if found.duration_ms is not None and found.duration_ms > limits.duration_s * 1_000:
        raise _too_long(limits)
    return found


async def transcode(
    plan: Plan, source: Path, to: Path, limits: ConverterLimits, on_share: Callable[[float], None]
) -> int:
    """Convert; returns how long the result plays, milliseconds. `on_share` is told how much is done, up to 1.

    Raises ConversionFailed.
    """
    found = await probe(source, limits)
    if not (found.video if plan.format.video else found.audio):
        missing = "picture" if plan.format.video else "sound"
        raise ConversionFailed("no_stream", f"the source has no {missing}, of which {plan.format.name} is made")
    wanted_ms = None if found.duration_ms is None else plan.duration_ms(found.duration_ms)
    if wanted_ms == 0:
        raise ConversionFailed("bad_options", "trim: the source ends before the part that is to be kept begins")
    command = [*_input(plan.seek()), *plan.arguments(), "-threads", str(limits.threads), "-y", f"file:{to}"]
    played_ms = 0
    async with running(command, source, limits) as run:
        async for played_ms in run.progress():
            if played_ms > limits.duration_s * 1_000:
                raise _too_long(limits)
            if wanted_ms:
                on_share(min(1.0, played_ms / wanted_ms))
        said = await run.said()
        run.check(said)
    if not to.exists() or to.stat().st_size == 0 or played_ms <= 0:
        raise ConversionFailed("damaged", f"nothing could be decoded: {reason(said)}")
    # ffmpeg takes the end of a file for the end of what it holds, and says nothing.
    if wanted_ms is not None and played_ms < wanted_ms - max(_SHORT_MS, wanted_ms * _SHORT_SHARE):
        raise ConversionFailed(
            "damaged",
            f"the source is damaged or cut off: it gives {played_ms / 1_000:.1f} of {wanted_ms / 1_000:.1f} seconds",
        )
    return played_ms


def _input(seek: Sequence[str] = ()) -> list[str]:
    return ["-protocol_whitelist", "fd", "-format_whitelist", DEMUXERS, *seek, "-i", "fd:"]


def _milliseconds(found: re.Match[str]) -> int:
    hours, minutes, seconds, hundredths = map(int, found.groups())
    return ((hours * 60 + minutes) * 60 + seconds) * 1_000 + hundredths * 10


def _too_long(limits: ConverterLimits) -> ConversionFailed:
    return ConversionFailed(
        "too_long", f"the source plays longer than the {limits.duration_s / 3_600:g} h that are allowed"
    )
