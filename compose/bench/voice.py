"""The audio of a measurement: every session's own, known again from its number alone."""

from __future__ import annotations

import hashlib

import numpy as np

RATE = 16_000
CHUNK_BYTES = 4_096
#: What one chunk plays, seconds: 7.8 of them a second.
CHUNK_S = CHUNK_BYTES / 2 / RATE
_LENGTH_S = 60
#: Samples between the beginnings of one session and the next.
_STRIDE = 4_099


class Voice:
    """Mono PCM of 16 bits, like speech in what it costs to compress: harmonics that come and go, and noise.

    Sessions begin at different places of one recording and go round it: one that got another's chunk is not bit for bit.
    """

    def __init__(self) -> None:
        at = np.arange(RATE * _LENGTH_S) / RATE
        pitch = 2 * np.pi * np.cumsum(140 + 30 * np.sin(2 * np.pi * 0.7 * at)) / RATE
        tone = sum(np.sin(harmonic * pitch) / harmonic for harmonic in range(1, 8))
        loud = np.clip(np.sin(2 * np.pi * 2.3 * at) + 0.4 * np.sin(2 * np.pi * 0.31 * at), 0, None)
        noise = np.random.default_rng(1).normal(0, 60, at.size)
        samples = np.clip(4_000 * tone * loud + noise, -32_768, 32_767).astype("<i2")
        # A chunk may begin at any sample: its end is there without going round.
        self._bytes = memoryview(samples.tobytes() + samples[: CHUNK_BYTES // 2].tobytes())
        self._samples = samples.size

    def chunk(self, session: int, seq: int) -> memoryview:
        """The chunk's bytes."""
        first = 2 * ((session * _STRIDE + seq * (CHUNK_BYTES // 2)) % self._samples)
        return self._bytes[first : first + CHUNK_BYTES]

    def md5(self, session: int, chunks: int) -> str:
        """Of the session's first `chunks` chunks together."""
        found = hashlib.md5(usedforsecurity=False)
        for seq in range(chunks):
            found.update(self.chunk(session, seq))
        return found.hexdigest()
