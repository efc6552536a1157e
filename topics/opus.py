"""How long an Opus packet plays, read from its first two bytes (RFC 6716, section 3)."""

from __future__ import annotations

#: Opus counts time at 48 kHz whatever the rate of its input.
RATE = 48_000
#: The longest packet, 120 ms.
MAX_SAMPLES = 5_760

_SILK = (480, 960, 1920, 2880)
_HYBRID = (480, 960)
_CELT = (120, 240, 480, 960)
_FRAME_SAMPLES = _SILK * 3 + _HYBRID * 2 + _CELT * 4
assert len(_FRAME_SAMPLES) == 32


def packet_samples(packet: bytes) -> int | None:
    """Samples a channel at 48 kHz that `packet` decodes to; None if no decoder would take it.

    A multistream packet begins with its first stream's table of contents and frame count, and all its streams last as long.
    """
    if not packet:
        return None
    count = (1, 2, 2, 0)[packet[0] & 3]
    if not count:
        if len(packet) < 2:
            return None
        count = packet[1] & 0x3F
    samples = count * _FRAME_SAMPLES[packet[0] >> 3]
    return samples if 0 < samples <= MAX_SAMPLES else None
