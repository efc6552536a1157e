"""A process that does one conversion: its work comes by standard input, what it says goes to standard output."""

from __future__ import annotations

import asyncio
import os
import sys
import time

import msgspec

from compose.converter.words import Done, Going, Word, Work, failed, line
from compose.converter.work import work
from streams.files.converting import ConversionFailed
from topics.files import Stage

#: Progress is told so often at most, seconds; a stage's beginning and end always.
_PACE_S = 0.2


class _Telling:
    """Progress as lines on a file descriptor."""

    def __init__(self, to: int) -> None:
        self._to = to
        self._stage: Stage | None = None
        self._told_at = 0.0

    def say(self, word: Word) -> None:
        data = line(word)
        while data:
            data = data[os.write(self._to, data) :]

    def progress(self, stage: Stage, share: float) -> None:
        now = time.monotonic()
        if stage is self._stage and share < 1.0 and now - self._told_at < _PACE_S:
            return
        self._stage, self._told_at = stage, now
        self.say(Going(stage, round(share, 4)))


async def _main() -> None:
    todo = msgspec.json.decode(sys.stdin.buffer.read(), type=Work)
    # Whatever a library prints is not taken for our word.
    to = os.dup(1)
    os.dup2(2, 1)
    telling = _Telling(to)
    try:
        telling.say(Done(await work(todo, telling.progress)))
    except ConversionFailed as error:
        telling.say(failed(error))


if __name__ == "__main__":
    asyncio.run(_main())
