"""Files that somebody made to do harm, or by accident: what a converter must turn away, each with its reason."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.media import make, silence

#: In every local file that the hostile ones name.
SECRET = "the-words-of-another-file"
#: Over this a source is too large; it may play for an hour.
SOURCE_MB, DURATION_H, MEMORY_MB = 4, 1, 700


@dataclass(frozen=True)
class Hostile:
    """A source and what is asked of it; the job fails with one of the `reasons`, and its error has the `words`."""

    name: str
    data: bytes
    reasons: frozenset[str]
    words: str = ""
    format: str = "mp3"
    options: dict[str, Any] = field(default_factory=dict)


def hostile(folder: Path) -> Iterator[Hostile]:
    """All of them, made in a folder."""
    clip = make(folder / "clip.webm", 2.0).read_bytes()
    sound = make(folder / "sound.webm", 12.0, "-c:a", "libopus", video=False).read_bytes()
    picture = make(folder / "picture.mp4", 1.0, sound=False).read_bytes()
    long = silence(folder / "long.wav", 10.0, 100).read_bytes()

    def case(name: str, data: bytes, reasons: str, words: str = "", format: str = "mp3", **options: Any) -> Hostile:
        return Hostile(name, data, frozenset(reasons.split()), words, format, options)

    yield case("words", b"this is no media file, " * 100, "not_media", "no audio or video file")
    yield case("empty", b"", "not_media", "empty")
    yield case("zeros", bytes(4_096), "not_media", "no audio or video file")
    yield case("half", sound[: len(sound) // 2], "damaged", "of 12.0 seconds")
    yield case("head", picture[:100], "not_media damaged", format="mp4")
    yield case("tail", picture[: len(picture) // 2], "not_media damaged", format="mp4")
    for name, text in _naming_files(folder):
        yield case(name, text.encode(), "not_media", "no audio or video file", "wav")
    yield case("polyglot", b"GIF89a" + dict(_naming_files(folder))["hls"].encode(), "not_media no_stream", format="wav")
    yield case("ten hours", long, "too_long", "1 h")
    yield case("large", bytes((SOURCE_MB << 20) + 1), "source_too_large", "more than the")
    yield case("deaf", picture, "no_stream", "no sound")
    yield case("blind", sound, "no_stream", "no picture", "mp4")
    yield case("beyond", clip, "bad_options", "ends before", trim={"start_ms": 3_600_000})
    yield case("tiny", clip, "bad_options", "16", "mp4", scale={"width": 1})
    yield case("option", clip, "bad_options", "trim", "mp4", filter="movie=/etc/passwd")
    yield case("tape", clip, "unknown_format", "mp3", "../../tape")
    yield case("pixels", _pixels(folder, 60_000, 60_000), "damaged no_stream not_media", format="mp4")
    yield case("memory", _pixels(folder, 16_000, 16_000), "damaged memory_limit", format="mp4")


def _naming_files(folder: Path) -> Iterator[tuple[str, str]]:
    """Playlists and pictures that name a local file, which is there."""
    words, sound = folder / "secret.txt", make(folder / "secret.wav", 1.0, video=False)
    words.write_text(SECRET)
    yield "hls", f"#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\nfile://{sound}\n#EXT-X-ENDLIST\n"
    yield "key", f'#EXTM3U\n#EXT-X-KEY:METHOD=AES-128,URI="file://{words}"\n#EXTINF:9,\n{sound}\n#EXT-X-ENDLIST\n'
    yield "ffconcat", f"ffconcat version 1.0\nfile '{sound}'\n"
    yield "concat", f"concat:{sound}|{words}\n"
    yield "svg", f'<svg xmlns="http://www.w3.org/2000/svg"><image href="file://{words}"/></svg>'
    yield "srt", f"1\n00:00:00,000 --> 00:00:09,000\n<img src='file://{words}'>\n"


def _pixels(folder: Path, width: int, height: int) -> bytes:
    """A film of one small PNG that says that it is this large, with a right checksum."""
    film = make(folder / "png.mkv", 0.1, "-c:v", "png", "-frames:v", "1", sound=False).read_bytes()
    at = film.index(b"IHDR")
    header = b"IHDR" + struct.pack(">II", width, height) + film[at + 12 : at + 17]
    return film[:at] + header + struct.pack(">I", zlib.crc32(header)) + film[at + len(header) + 4 :]
