"""libsndfile, which reads and writes more than this package's own code does, used forward only."""

from __future__ import annotations

from collections.abc import Iterator

import soundfile

#: What libsndfile raises for bytes that it cannot read.
Unreadable = soundfile.SoundFileError


class ForwardFile(soundfile.SoundFile):  # type: ignore[misc]
    """A sound file that never seeks: soundfile would else do so after every block, which some streams cannot."""

    def seekable(self) -> bool:
        return False

    def pcm(self, samples: int = 16_384) -> Iterator[bytes]:
        """What is left of it, as 16-bit PCM in blocks of so many samples a channel."""
        frame_bytes = 2 * self.channels
        buffer = bytearray(samples * frame_bytes)
        while frames := self.buffer_read_into(buffer, "int16"):
            yield bytes(memoryview(buffer)[: frames * frame_bytes])
