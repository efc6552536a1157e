"""What decides a session's course: all of it is of the partition's clock and of the audio itself."""

from __future__ import annotations

import zlib
from dataclasses import dataclass, field
from functools import lru_cache

from streams.audio.held import CHUNK_OVERHEAD
from topics.audio import MAX_CHUNK_BYTES, Format, Open, Tier
from topics.specs import AUDIO_CHUNKS, AUDIO_SEGMENTS

#: Bytes a second of Opus that memory is reserved by, a channel: music at its best.
OPUS_BYTE_RATE = 16_000
#: Milliseconds of a chunk that memory is reserved by: of Opus it is one packet.
CHUNK_MS, OPUS_CHUNK_MS = 128, 20


@dataclass(frozen=True, kw_only=True)
class AudioRules:
    """Times in milliseconds. Whatever they are, a restore decides as the first run did.

    `upload_after_ms` is both the audio of one segment and the longest that a chunk waits to be in one. `silence_ms` without
    a chunk cuts what is there, `session_idle_ms` ends the session. The newest `reorder_ms` of audio stay out of a cut, so
    that a chunk that comes late still finds its place. An ended session is remembered for `remember_ms`. Within `spread_ms`
    the first segments of sessions that began together end, so that they are not all cut at one time ever after.

    A session's snapshot is one record of the changelog, whatever a producer sends: `segments_max` bounds its segments and the
    runs of what is pending together, of which a cut makes segments, and `pending_max` its pending chunks. At its widest in
    MessagePack a segment takes 506 bytes, its range 19, a pending chunk 46: 3.9 MB of the changelog's 4 MiB.
    """

    partition: int
    partitions: int
    upload_after_ms: int = 60_000
    spread_ms: int = 0
    silence_ms: int = 30_000
    session_idle_ms: int = 600_000
    reorder_ms: int = 2_000
    remember_ms: int = 86_400_000
    window_ms: dict[Tier, int] = field(default_factory=lambda: {Tier.STANDARD: 120_000, Tier.PREMIUM: 300_000})
    remove_segments: bool = True
    segments_max: int = 6_000
    pending_max: int = 16_000
    chunk_bytes_max: int = MAX_CHUNK_BYTES
    source: str = AUDIO_CHUNKS
    events: str = AUDIO_SEGMENTS

    def first_upload_after_ms(self, session_id: str) -> int:
        """`upload_after_ms` of a session's first segment: less by up to `spread_ms`, by how much is the session's own."""
        return self.upload_after_ms - (self.spread_ms * _share(session_id) >> 32)

    def window_bytes(self, opened: Open) -> int:
        """Audio of a session's window: its tier's length at the format's byte rate."""
        return self.window_ms[opened.tier] * byte_rate(opened) // 1000

    def window_memory(self, opened: Open) -> int:
        """Memory that a session is admitted with, bytes: its window, in chunks of the usual length. Of shorter ones that are
        not smaller by as much a shorter window is kept."""
        usual_ms = OPUS_CHUNK_MS if opened.format is Format.OPUS else CHUNK_MS
        return self.window_bytes(opened) + -(-self.window_ms[opened.tier] // usual_ms) * CHUNK_OVERHEAD


@lru_cache(maxsize=16_384)
def _share(session_id: str) -> int:
    """A session's own number, below 2 to the 32nd."""
    return zlib.crc32(session_id.encode())


def byte_rate(opened: Open) -> int:
    """Bytes of a second of a session, at most: FLAC is bounded by the PCM in it."""
    return OPUS_BYTE_RATE * opened.channels if opened.format is Format.OPUS else opened.byte_rate
