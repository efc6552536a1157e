"""What a converter says of a conversion, a line of JSON each: its progress, and last its result or its failure."""

from __future__ import annotations

import msgspec

from compose.converter.limits import ConverterLimits
from streams.files.converting import ConversionFailed, ConvertRequest, ConvertResult
from topics.files import ErrorType, Stage


class Going(msgspec.Struct, frozen=True, tag="progress"):
    """So far, from 0 to 1."""

    stage: Stage
    share: float


class Done(msgspec.Struct, frozen=True, tag="result"):
    """The last word: it is uploaded."""

    result: ConvertResult


class Failed(msgspec.Struct, frozen=True, tag="failed"):
    """The last word: it came to nothing; see `ConversionFailed`."""

    code: ErrorType
    message: str
    again: bool

    def error(self) -> ConversionFailed:
        """As it is raised."""
        return ConversionFailed(self.code, self.message, again=self.again)


Word = Going | Done | Failed


class Work(msgspec.Struct, frozen=True):
    """What a child process is told to do, and in which folder. `networks` may be reached for a foreign source though they are
    not public."""

    request: ConvertRequest
    folder: str
    limits: ConverterLimits
    networks: str = ""


_words: msgspec.json.Decoder[Word] = msgspec.json.Decoder(Word)


def failed(error: ConversionFailed) -> Failed:
    """A failure as it is told."""
    return Failed(error.code, str(error), error.again)


def line(word: Word) -> bytes:
    """A word as its line."""
    return msgspec.json.encode(word) + b"\n"


def heard(text: bytes) -> Word:
    """The word of a line. Raises msgspec.DecodeError for what is none."""
    return _words.decode(text)
