"""An access log as a file read twice: surveyed, then replayed, with the same lines and occurrence numbers each time."""

from __future__ import annotations

import gzip
import shutil
import sys
import tempfile
import zlib
from array import array
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from xxhash import xxh3_64_intdigest, xxh3_128_digest

from streams.traffic.accessline import AccessLine
from topics.traffic import Malformed

#: Longer lines are cut, which leaves them malformed.
LINE_BYTES_MAX = 65_536
_SECONDS_MAX = 100_000
_GZIP_MAGIC = b"\x1f\x8b"

Parse = Callable[[bytes], AccessLine | Malformed]
#: Told the bytes of the file read so far.
Progress = Callable[[int], None]


class LogFile:
    """A log file, plain or gzip whatever its name, or standard input (`-`)."""

    def __init__(self, name: str) -> None:
        """Open it. Raises OSError."""
        self.name = name
        self.damage: str | None = None
        self._file = _seekable(sys.stdin.buffer if name == "-" else Path(name).open("rb"))  # noqa: SIM115 (close does)
        self.size_bytes = self._file.seek(0, 2)

    def lines(self, progress: Progress) -> Iterator[bytes]:
        """Every line without its end, from the start. Damaged gzip data end the lines and are told in `damage`."""
        self._file.seek(0)
        zipped = self._file.read(2) == _GZIP_MAGIC
        self._file.seek(0)
        stream: Any = gzip.GzipFile(fileobj=self._file) if zipped else self._file
        try:
            for number, line in enumerate(_lines(stream)):
                if number % 1024 == 0:
                    progress(self._file.tell())
                yield line
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            self.damage = f"its gzip data are damaged or cut off ({error}); lines up to there are taken"
        progress(self.size_bytes)

    def close(self) -> None:
        """Let go of the file."""
        self._file.close()


@dataclass(frozen=True)
class Survey:
    """What a first pass finds: lines in all, the newest time among them, and which lines may occur more than once."""

    lines: int
    newest_ms: int | None
    repeated: frozenset[int]


def survey(lines: Iterator[bytes], parse: Parse) -> Survey:
    """Read all lines once. Holds 8 bytes a line, so that occurrences need be counted for repeated lines only."""
    prints = array("Q")
    newest_ms: int | None = None
    known: set[bytes] = set()
    for line in lines:
        prints.append(xxh3_64_intdigest(line))
        second = _second(line)
        if second in known:  # many lines share a second, and parsing is most of the work
            continue
        parsed = parse(line)
        if isinstance(parsed, AccessLine):
            newest_ms = parsed.timestamp_ms if newest_ms is None else max(newest_ms, parsed.timestamp_ms)
            if second is not None and len(known) < _SECONDS_MAX:
                known.add(second)
    values, counts = np.unique(np.frombuffer(prints, dtype=np.uint64), return_counts=True)
    return Survey(len(prints), newest_ms, frozenset(values[counts > 1].tolist()))


class Occurrences:
    """Numbers equal lines 0, 1, 2, ... in the order of the file."""

    def __init__(self, repeated: frozenset[int]) -> None:
        self._repeated = repeated
        self._seen: dict[bytes, int] = {}

    def number(self, line: bytes) -> int:
        """How many equal lines came before this one."""
        if xxh3_64_intdigest(line) not in self._repeated:
            return 0
        digest = xxh3_128_digest(line)
        seen = self._seen.get(digest, 0)
        self._seen[digest] = seen + 1
        return seen


def _second(line: bytes) -> bytes | None:
    """The time's text where it stands in brackets, as in the combined format."""
    at = line.find(b"[") + 1
    return line[at : at + 26] if at and line[:1] != b"{" else None


def _seekable(stream: IO[bytes]) -> IO[bytes]:
    """The stream itself, or a temporary copy of a pipe, which cannot be read twice."""
    if stream.seekable():
        return stream
    kept = tempfile.TemporaryFile()  # noqa: SIM115 (LogFile.close does)
    shutil.copyfileobj(stream, kept)
    return kept


def _lines(stream: IO[bytes]) -> Iterator[bytes]:
    while line := stream.readline(LINE_BYTES_MAX):
        if len(line) == LINE_BYTES_MAX and line[-1:] != b"\n":
            while (rest := stream.readline(LINE_BYTES_MAX)) and rest[-1:] != b"\n":
                pass
        yield line.rstrip(b"\r\n")
