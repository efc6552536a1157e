"""The formats that files are converted to, and what each asks of ffmpeg. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from topics.malformed import Malformed


class Quality(StrEnum):
    """How good, and so how large, a result is."""

    LOW = "low"
    MEDIUM = "medium"
    HIGH = "high"


@dataclass(frozen=True)
class Format:
    """One kind of result. `codec` are ffmpeg's arguments for any quality, `qualities` those that make the difference."""

    name: str
    extension: str
    content_type: str
    video: bool
    muxer: str
    codec: tuple[str, ...]
    qualities: Mapping[Quality, tuple[str, ...]]
    about: str


class Trim(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Keep what lies from `start_ms` on, and of that `duration_ms` at most."""

    start_ms: Annotated[int, Meta(ge=0, le=1 << 40)] = 0
    duration_ms: Annotated[int, Meta(ge=1, le=1 << 40)] | None = None


class Scale(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Fit the picture into this box, its shape kept; nothing is made larger."""

    width: Annotated[int, Meta(ge=16, le=4096)] | None = None
    height: Annotated[int, Meta(ge=16, le=4096)] | None = None


class Options(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What else a job may ask for."""

    trim: Trim | None = None
    scale: Scale | None = None


@dataclass(frozen=True)
class Plan:
    """What is to be made of a source: checked, so that ffmpeg never gets a word that a client chose freely."""

    format: Format
    quality: Quality
    options: Options

    def arguments(self) -> list[str]:
        """ffmpeg's output arguments, without the file."""
        trim = self.options.trim
        picture = ["-map", "0:v:0", "-map", "0:a:0?", "-vf", self._picture()]
        streams = picture if self.format.video else ["-map", "0:a:0", "-vn"]
        length = ["-t", _seconds(trim.duration_ms)] if trim and trim.duration_ms else []
        plain = ["-sn", "-dn", "-map_metadata", "-1", "-map_chapters", "-1", "-bitexact"]
        codec = [*self.format.codec, *self.format.qualities[self.quality]]
        return [*streams, *plain, *length, *codec, "-f", self.format.muxer]

    def seek(self) -> list[str]:
        """ffmpeg's input arguments."""
        trim = self.options.trim
        return ["-ss", _seconds(trim.start_ms)] if trim and trim.start_ms else []

    def duration_ms(self, source_ms: int) -> int:
        """How long the result plays, of a source that plays `source_ms`."""
        trim = self.options.trim or Trim()
        left = max(0, source_ms - trim.start_ms)
        return left if trim.duration_ms is None else min(left, trim.duration_ms)

    def _picture(self) -> str:
        """Encoders of 4:2:0 want even sides."""
        scale = self.options.scale or Scale()
        width, height = (f"min({side or 4096},{own})" for side, own in ((scale.width, "iw"), (scale.height, "ih")))
        return (
            f"scale=w='{width}':h='{height}':force_original_aspect_ratio=decrease:force_divisible_by=2,format=yuv420p"
        )


def plan(format: str, quality: str | None = None, options: Mapping[str, Any] | None = None) -> Plan | Malformed:
    """What a job asks for, or what is wrong with it and what is allowed. `quality` is medium unless it is given."""
    found = FORMATS.get(ALIASES.get(format, format))
    if found is None:
        return Malformed("unknown_format", f"format {format[:60]!r} is none of {', '.join([*FORMATS, *ALIASES])}")
    if quality is not None and quality not in set(Quality):
        return Malformed("unknown_quality", f"quality {quality[:60]!r} is none of {', '.join(Quality)}")
    try:
        chosen = msgspec.convert(dict(options or {}), Options)
    except msgspec.ValidationError as error:
        allowed = "trim {start_ms, duration_ms} and, of video, scale {width, height} of 16 to 4096"
        return Malformed("bad_options", f"options: {error}; there are {allowed}")
    if chosen.scale is not None and not found.video:
        return Malformed("bad_options", f"options: {found.name} has no picture to scale")
    return Plan(found, Quality(quality or Quality.MEDIUM), chosen)


def _seconds(milliseconds: int) -> str:
    return f"{milliseconds // 1000}.{milliseconds % 1000:03d}"


def _levels(low: str, medium: str, high: str) -> dict[Quality, tuple[str, ...]]:
    return dict(zip(Quality, (tuple(words.split()) for words in (low, medium, high)), strict=True))


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


FORMATS: Mapping[str, Format] = {
    kind.name: kind
    for kind in (
        Format(
            "mp3", "mp3", "audio/mpeg", False, "mp3",
            _words("-c:a libmp3lame -ac 2"), _levels("-b:a 96k", "-b:a 160k", "-b:a 320k"),
            "MPEG audio layer III; 96, 160 or 320 kbit/s",
        ),
        Format(
            "m4a", "m4a", "audio/mp4", False, "ipod",
            _words("-c:a aac -ac 2 -movflags +faststart"), _levels("-b:a 96k", "-b:a 160k", "-b:a 256k"),
            "AAC in MPEG-4; 96, 160 or 256 kbit/s",
        ),
        Format(
            "opus", "opus", "audio/ogg", False, "ogg",
            _words("-c:a libopus -ac 2 -ar 48000"), _levels("-b:a 48k", "-b:a 96k", "-b:a 160k"),
            "Opus in Ogg; 48, 96 or 160 kbit/s",
        ),
        Format(
            "flac", "flac", "audio/flac", False, "flac",
            _words("-c:a flac"), _levels("-ar 22050 -sample_fmt s16", "-sample_fmt s16", "-sample_fmt s32"),
            "FLAC, nothing lost of 16 bits at 22.05 kHz, of 16 bits, or of 24 bits",
        ),
        Format(
            "wav", "wav", "audio/wav", False, "wav",
            (), _levels("-ar 22050 -c:a pcm_s16le", "-c:a pcm_s16le", "-c:a pcm_s24le"),
            "PCM; 16 bits at 22.05 kHz, 16 bits, or 24 bits",
        ),
        Format(
            "mp4", "mp4", "video/mp4", True, "mp4",
            _words("-c:v libx264 -preset veryfast -movflags +faststart -c:a aac -ac 2"),
            _levels("-crf 30 -b:a 96k", "-crf 24 -b:a 128k", "-crf 19 -b:a 192k"),
            "H.264 and AAC in MPEG-4",
        ),
        Format(
            "webm", "webm", "video/webm", True, "webm",
            _words("-c:v libvpx-vp9 -deadline realtime -cpu-used 7 -row-mt 1 -b:v 0 -c:a libopus -ac 2 -ar 48000"),
            _levels("-crf 42 -b:a 64k", "-crf 34 -b:a 96k", "-crf 26 -b:a 128k"),
            "VP9 and Opus in WebM",
        ),
    )
}  # fmt: skip
#: Other names that clients use.
ALIASES: Mapping[str, str] = {"aac": "m4a", "vp9": "webm", "h264": "mp4"}


def described() -> list[dict[str, Any]]:
    """The formats as `GET /api/formats` lists them."""
    names = {name: [alias for alias, of in ALIASES.items() if of == name] for name in FORMATS}
    return [
        {
            "format": kind.name,
            "aliases": names[kind.name],
            "kind": "video" if kind.video else "audio",
            "extension": kind.extension,
            "content_type": kind.content_type,
            "qualities": list(Quality),
            "options": ["trim", "scale"] if kind.video else ["trim"],
            "description": kind.about,
        }
        for kind in FORMATS.values()
    ]
