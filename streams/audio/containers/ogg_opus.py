"""Opus packets as a playable Ogg stream, and back (RFC 7845)."""

from __future__ import annotations

import struct
from dataclasses import dataclass

from streams.audio.containers import ogg
from streams.audio.containers.errors import BadAudio
from streams.audio.containers.ogg import NO_GRANULE, Page
from topics import opus

#: What libopus delays its input by, which players cut off at the start: 6.5 ms.
PRE_SKIP = 312
#: A packet longer than this is damage: 8 channels of 120 ms stay well below.
PACKET_BYTES_MAX = 1 << 20

_VENDOR = b"sluiceway"
_HEAD = struct.Struct("<8sBBHIhB")
# Channels -> streams, coupled streams and the map from Vorbis channel order (section 5.1.1.2) that libopus and ffmpeg encode
# with. They do not agree on 7.
_LAYOUTS = {
    3: (2, 1, b"\x00\x02\x01"),
    4: (2, 2, b"\x00\x01\x02\x03"),
    5: (3, 2, b"\x00\x04\x01\x02\x03"),
    6: (4, 2, b"\x00\x04\x01\x02\x03\x05"),
    8: (5, 3, b"\x00\x06\x01\x02\x03\x04\x05\x07"),
}


@dataclass(frozen=True, slots=True)
class OpusHead:
    """What the first packet says. `rate` is that of the encoder's input; the stream's own clock is 48 kHz."""

    channels: int
    rate: int
    pre_skip: int = PRE_SKIP

    def encode(self) -> bytes:
        """The packet. Raises BadAudio for 7 channels and for more than 8."""
        family = 0 if self.channels <= 2 else 1
        fixed = _HEAD.pack(b"OpusHead", 1, self.channels, self.pre_skip, self.rate, 0, family)
        if not family:
            return fixed
        if self.channels not in _LAYOUTS:
            raise BadAudio(f"Opus of {self.channels} channels has no layout that all encoders share")
        streams, coupled, mapping = _LAYOUTS[self.channels]
        return fixed + bytes([streams, coupled]) + mapping


class OggOpusWriter:
    """One Ogg stream of Opus packets. The same packets give the same bytes.

    The newest packet's page is held back, so that the last page can say that it is the last.
    """

    def __init__(self, rate: int, channels: int, serial: int, pre_skip: int = PRE_SKIP) -> None:
        self._serial = serial & 0xFFFF_FFFF
        self._sequence = 0
        self._head = OpusHead(channels, rate, pre_skip).encode()
        self._lacing = b""
        self._body: list[bytes] = []
        self._continued = False
        self._page_from = 0
        self._page_granule = NO_GRANULE
        self.samples = 0

    def start(self) -> bytes:
        """The two pages that precede the audio."""
        tags = b"OpusTags" + struct.pack("<I", len(_VENDOR)) + _VENDOR + bytes(4)
        head = self._page(ogg.FIRST, 0, ogg.lacing_of(len(self._head)), self._head)
        return head + self._page(0, 0, ogg.lacing_of(len(tags)), tags)

    def add(self, packet: bytes) -> bytes:
        """The pages that are full. Raises BadAudio for bytes that are no packet."""
        samples = opus.packet_samples(packet)
        if samples is None:
            raise BadAudio(f"{len(packet)} bytes from {packet[:2].hex()} are no Opus packet")
        pages = b""
        lacing = ogg.lacing_of(len(packet))
        # A page lasts about a second (section 4), and a packet is cut only if it fits no page.
        full = self.samples - self._page_from >= opus.RATE or len(self._lacing) + len(lacing) > ogg.SEGMENTS_MAX
        if self._lacing and full:
            pages += self._flush(0)
        at = 0
        while len(lacing) > ogg.SEGMENTS_MAX:
            step = ogg.SEGMENTS_MAX * 255
            self._lacing, self._body = lacing[: ogg.SEGMENTS_MAX], [packet[at : at + step]]
            pages += self._flush(0)
            self._continued = True
            lacing, at = lacing[ogg.SEGMENTS_MAX :], at + step
        self._lacing += lacing
        self._body.append(packet[at:])
        self.samples += samples
        self._page_granule = self.samples
        return pages

    def finish(self) -> bytes:
        """The last page."""
        if not self.samples:
            self._page_granule = 0
        return self._flush(ogg.LAST)

    def _flush(self, flags: int) -> bytes:
        flags |= ogg.CONTINUED if self._continued else 0
        page = self._page(flags, self._page_granule, self._lacing, b"".join(self._body))
        self._lacing, self._body, self._continued = b"", [], False
        self._page_from, self._page_granule = self.samples, NO_GRANULE
        return page

    def _page(self, flags: int, granule: int, lacing: bytes, body: bytes) -> bytes:
        page = Page(flags, granule, self._serial, self._sequence, lacing, body)
        self._sequence += 1
        return ogg.write_page(page)


class OggOpusReader:
    """The Opus packets of an Ogg stream that is fed in blocks; `head` is None until its first packet was read.

    Other streams beside it are passed over; a stream chained after it is read on if its channels are the same. Raises
    BadAudio for damage, for a lost page, and for a file without Opus.
    """

    def __init__(self) -> None:
        self.head: OpusHead | None = None
        self._pages = ogg.PageReader()
        self._serial: int | None = None
        self._expected = 0
        self._partial: list[bytes] | None = None
        self._partial_bytes = 0
        self._headers = 0

    def feed(self, block: bytes) -> list[bytes]:
        """The packets that end in this block."""
        packets: list[bytes] = []
        for page in self._pages.feed(block):
            if page.flags & ogg.FIRST:
                self._begin(page)
            if page.serial == self._serial:
                packets += self._packets(page)
        return packets

    def finish(self) -> None:
        """Say that no block follows. Raises BadAudio for a stream that was cut off or had no Opus in it."""
        self._pages.finish()
        if self.head is None or self._headers < 2:
            raise BadAudio("no Opus stream in this file")
        if self._partial is not None:
            raise BadAudio("the stream ends within a packet")

    def _begin(self, page: Page) -> None:
        """A stream's first page. Ours until it ends is the first that is Opus."""
        if self._serial is None and page.body.startswith(b"OpusHead"):
            self._serial, self._expected, self._headers = page.serial, page.sequence, 0

    def _packets(self, page: Page) -> list[bytes]:
        if page.sequence != self._expected:
            raise BadAudio(f"page {self._expected} of the Opus stream is missing: page {page.sequence} follows")
        self._expected = (page.sequence + 1) & 0xFFFF_FFFF
        if bool(page.flags & ogg.CONTINUED) != (self._partial is not None):
            raise BadAudio(f"page {page.sequence} of the Opus stream does not go on where the one before it ended")
        packets = [packet for packet in self._unlaced(page) if self._is_audio(packet)]
        if page.flags & ogg.LAST:
            if self._partial is not None:
                raise BadAudio("the stream ends within a packet")
            self._serial = None
        return packets

    def _unlaced(self, page: Page) -> list[bytes]:
        packets: list[bytes] = []
        at = 0
        for size in page.lacing:
            held = [] if self._partial is None else self._partial
            held.append(page.body[at : at + size])
            self._partial, self._partial_bytes, at = held, self._partial_bytes + size, at + size
            if self._partial_bytes > PACKET_BYTES_MAX:
                raise BadAudio(f"an Opus packet of more than {PACKET_BYTES_MAX} bytes")
            if size < 255:
                packets.append(b"".join(held))
                self._partial, self._partial_bytes = None, 0
        return packets

    def _is_audio(self, packet: bytes) -> bool:
        """Whether a packet follows the two headers. Raises BadAudio for one that no decoder takes."""
        if self._headers == 0:
            head = _read_head(packet)
            if self.head is not None and head.channels != self.head.channels:
                raise BadAudio(f"a chained stream has {head.channels} channels, the first {self.head.channels}")
            self.head, self._headers = self.head or head, 1
            return False
        if self._headers == 1:
            if not packet.startswith(b"OpusTags"):
                raise BadAudio("the Opus stream has no tags after its head")
            self._headers = 2
            return False
        if opus.packet_samples(packet) is None:
            raise BadAudio(f"{len(packet)} bytes from {packet[:2].hex()} are no Opus packet")
        return True


def _read_head(packet: bytes) -> OpusHead:
    if len(packet) < _HEAD.size:
        raise BadAudio(f"an OpusHead of {len(packet)} bytes")
    name, version, channels, pre_skip, rate, _, _ = _HEAD.unpack_from(packet)
    if name != b"OpusHead" or version >> 4 or not channels:
        raise BadAudio(f"an OpusHead of version {version} with {channels} channels")
    return OpusHead(channels, rate, pre_skip)
