"""What a strict decoder says of bytes that are no record of its topic."""

from __future__ import annotations

from typing import TypeVar

import msgspec

T = TypeVar("T")


class Malformed(msgspec.Struct, frozen=True):
    """Why a record cannot be taken: `reason` is a label of few values, `error` the sentence."""

    reason: str
    error: str


def decoded(decoder: msgspec.json.Decoder[T], value: bytes | None) -> T | Malformed:
    """A JSON value of the decoder's type. Total: any bytes give one or a `Malformed`, `invalid` or `not_json`."""
    try:
        return decoder.decode(value or b"")
    except msgspec.ValidationError as error:
        return Malformed("invalid", str(error))
    except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
        return Malformed("not_json", str(error))
