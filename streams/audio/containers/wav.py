"""WAV files of 16-bit PCM, and RF64 where four gigabytes are not enough.

Formats: https://www.mmsp.ece.mcgill.ca/Documents/AudioFormats/WAVE/WAVE.html and EBU Tech 3306 (RF64).
"""

from __future__ import annotations

import struct

from streams.audio.containers.errors import BadAudio

HEADER_BYTES = 44
RF64_HEADER_BYTES = 80
_UNKNOWN = 0xFFFF_FFFF
_PCM, _EXTENSIBLE = 1, 0xFFFE
_FORMAT = struct.Struct("<HHIIHH")
_FORMAT_BYTES_MAX = 1_024


def header(rate: int, channels: int, data_bytes: int) -> bytes:
    """What precedes `data_bytes` of PCM: 44 bytes, or 80 when the sizes need 64 bits."""
    frame = 2 * channels
    assert data_bytes % frame == 0, f"{data_bytes} bytes are no whole number of {channels}-channel samples"
    form = b"fmt " + struct.pack("<I", _FORMAT.size) + _FORMAT.pack(_PCM, channels, rate, rate * frame, frame, 16)
    if HEADER_BYTES - 8 + data_bytes < _UNKNOWN:
        riff = b"RIFF" + struct.pack("<I", HEADER_BYTES - 8 + data_bytes) + b"WAVE"
        return riff + form + b"data" + struct.pack("<I", data_bytes)
    sizes = struct.pack("<QQQI", RF64_HEADER_BYTES - 8 + data_bytes, data_bytes, data_bytes // frame, 0)
    riff = b"RF64" + struct.pack("<I", _UNKNOWN) + b"WAVE" + b"ds64" + struct.pack("<I", len(sizes)) + sizes
    return riff + form + b"data" + struct.pack("<I", _UNKNOWN)


def wav_of(rate: int, channels: int, pcm: bytes) -> bytes:
    """A whole file of a stretch of PCM that is in memory."""
    return header(rate, channels, len(pcm)) + pcm


class WavReader:
    """The PCM of a WAV or RF64 file that is fed in blocks. `rate` and `channels` are 0 until its format was read.

    Raises BadAudio for anything but 16-bit PCM. A `data` chunk of unknown size (a file written to a pipe) lasts to the end.
    """

    def __init__(self) -> None:
        self.rate = 0
        self.channels = 0
        self._held = b""
        self._begun = False
        self._large = 0
        self._skip = 0
        self._left: int | None = None

    def feed(self, block: bytes) -> bytes:
        """The PCM in this block."""
        if self._left is not None:
            return self._data(block)
        self._held += block
        while self._left is None:
            if not self._next_chunk():
                return b""
        rest, self._held = self._held, b""
        return self._data(rest)

    def finish(self) -> None:
        """Say that no block follows. Raises BadAudio for a file that was cut off."""
        if self._left is None:
            raise BadAudio(
                f"the file ends before its audio, {len(self._held)} bytes into a chunk: it is no whole WAV file"
            )
        if self._left > 0:
            raise BadAudio(f"the file ends {self._left} bytes before its audio does")

    def _data(self, block: bytes) -> bytes:
        assert self._left is not None
        if self._left < 0:
            return block
        mine = block[: self._left]
        self._left -= len(mine)
        return mine

    def _next_chunk(self) -> bool:
        """Step over one piece of what precedes the audio; False if more bytes are needed for it."""
        held = self._held
        if self._skip:
            step = min(self._skip, len(held))
            self._skip, self._held = self._skip - step, held[step:]
            return not self._skip
        if not self._begun:
            return self._riff(held)
        if len(held) < 8:
            return False
        name, size = held[:4], int.from_bytes(held[4:8], "little")
        if name == b"data":
            return self._found_data(size)
        if name in (b"fmt ", b"ds64"):
            if size > _FORMAT_BYTES_MAX:
                raise BadAudio(f"a chunk {name!r} of {size} bytes")
            if len(held) < 8 + size + (size & 1):
                return False
            (self._format if name == b"fmt " else self._sizes)(held[8 : 8 + size])
        self._held, self._skip = held[8:], size + (size & 1)
        return True

    def _riff(self, held: bytes) -> bool:
        if len(held) < 12:
            if held[:4] not in (b"RIFF"[: len(held)], b"RF64"[: len(held)]):
                raise BadAudio(f"no WAV file: it begins with {held[:4]!r}")
            return False
        if held[:4] not in (b"RIFF", b"RF64") or held[8:12] != b"WAVE":
            raise BadAudio(f"no WAV file: it begins with {held[:12]!r}")
        self._held, self._begun = held[12:], True
        return True

    def _found_data(self, size: int) -> bool:
        if not self.rate:
            raise BadAudio("the audio comes before its format")
        if size == _UNKNOWN:
            size = self._large or -1
        self._held, self._left = self._held[8:], size
        return True

    def _format(self, body: bytes) -> None:
        if len(body) < _FORMAT.size:
            raise BadAudio(f"a format of {len(body)} bytes")
        kind, channels, rate, _, _, bits = _FORMAT.unpack_from(body)
        if kind == _EXTENSIBLE and len(body) >= 26:
            kind = int.from_bytes(body[24:26], "little")
        if kind != _PCM or bits != 16 or not channels or not rate:
            raise BadAudio(f"format {kind:#x} with {bits} bits, {channels} channels, {rate} Hz; 16-bit PCM is read")
        self.channels, self.rate = channels, rate

    def _sizes(self, body: bytes) -> None:
        if len(body) < 24:
            raise BadAudio(f"64-bit sizes of {len(body)} bytes")
        self._large = int.from_bytes(body[8:16], "little")
