"""Ogg pages: packets laced into them, and read back out of any bytes (RFC 3533)."""

from __future__ import annotations

import struct
import zlib
from typing import NamedTuple

from streams.audio.containers.errors import BadAudio

CAPTURE = b"OggS"
CONTINUED, FIRST, LAST = 1, 2, 4
#: The granule position of a page on which no packet ends.
NO_GRANULE = 0xFFFF_FFFF_FFFF_FFFF
SEGMENTS_MAX = 255
PAGE_BYTES_MAX = 27 + SEGMENTS_MAX * 256

_HEADER = struct.Struct("<4sBBQIIIB")
_REVERSED = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))


class Page(NamedTuple):
    """One page. `lacing` are its segment lengths, `body` their bytes; `granule` counts samples at its last packet's end."""

    flags: int
    granule: int
    serial: int
    sequence: int
    lacing: bytes
    body: bytes


def checksum(data: bytes) -> int:
    """Ogg's CRC: zlib's polynomial without its bit order, initial value and inversion."""
    plain = zlib.crc32(data.translate(_REVERSED), 0xFFFF_FFFF) ^ 0xFFFF_FFFF
    return int.from_bytes(plain.to_bytes(4, "little").translate(_REVERSED), "big")


def lacing_of(size: int) -> bytes:
    """The segment lengths of a packet: as many 255 as fit, then one below, which ends it."""
    return b"\xff" * (size // 255) + bytes([size % 255])


def write_page(page: Page) -> bytes:
    """A page with its checksum."""
    head = _HEADER.pack(CAPTURE, 0, page.flags, page.granule, page.serial, page.sequence, 0, len(page.lacing))
    data = head + page.lacing + page.body
    return data[:22] + struct.pack("<I", checksum(data)) + data[26:]


class PageReader:
    """The pages of a stream that is fed in blocks; holds less than a page. Raises BadAudio for damage of any kind."""

    def __init__(self) -> None:
        self._held = b""
        self._at = 0

    def feed(self, block: bytes) -> list[Page]:
        """The pages that end in this block."""
        held, at, pages = self._held + block, 0, []
        while True:
            found = self._page(held, at)
            if found is None:
                break
            page, size = found
            pages.append(page)
            at += size
            self._at += size
        self._held = held[at:]
        return pages

    def finish(self) -> None:
        """Say that no block follows. Raises BadAudio for a stream cut off within a page."""
        if self._held:
            raise BadAudio(f"the stream ends {len(self._held)} bytes into the page at byte {self._at}")

    def _page(self, held: bytes, at: int) -> tuple[Page, int] | None:
        start = held[at : at + 4]
        if start != CAPTURE[: len(start)]:
            raise BadAudio(f"no Ogg page at byte {self._at}: {start!r}")
        if len(held) - at < _HEADER.size:
            return None
        _, version, flags, granule, serial, sequence, crc, segments = _HEADER.unpack_from(held, at)
        if version:
            raise BadAudio(f"the page at byte {self._at} has version {version}; 0 is read")
        body_at = at + _HEADER.size + segments
        lacing = held[at + _HEADER.size : body_at]
        end = body_at + sum(lacing)
        if len(lacing) < segments or len(held) < end:
            return None
        if checksum(held[at : at + 22] + bytes(4) + held[at + 26 : end]) != crc:
            raise BadAudio(f"the page at byte {self._at} is damaged: its checksum is wrong")
        return Page(flags, granule, serial, sequence, lacing, held[body_at:end]), end - at
