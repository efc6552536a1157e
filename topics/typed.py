"""Records whose header `type` says which one they are, with a JSON object as value: what all topics of such records share."""

from __future__ import annotations

from collections.abc import Collection
from enum import StrEnum
from typing import NamedTuple, TypeVar

import msgspec

from topics.headers import Headers, header
from topics.malformed import Malformed, decoded

T = TypeVar("T")


class Reason(StrEnum):
    """Why a record is malformed: the labels of dead letters. What tasks and jobs fail of has labels of its own."""

    BAD_ID = "bad_id"
    BAD_TYPE = "bad_type"
    EMPTY = "empty"
    TOO_LARGE = "too_large"
    NOT_JSON = "not_json"
    INVALID = "invalid"


class Encoded(NamedTuple):
    """A record as it is sent."""

    key: bytes | None
    value: bytes
    headers: list[tuple[str, bytes | None]]


def type_of(headers: Headers, types: Collection[bytes]) -> bytes | Malformed:
    """Which of `types` a record is."""
    name = header(headers, "type")
    if name is not None and name in types:
        return name
    said = "is missing" if name is None else f"{name[:60]!r} is none of {b', '.join(types).decode()}"
    return Malformed(Reason.BAD_TYPE, f"header type {said}")


def value_of(decoder: msgspec.json.Decoder[T], value: bytes | None) -> T | Malformed:
    """A record's value, as `decoded`; it must be there, and all of it UTF-8."""
    if not value:
        return Malformed(Reason.EMPTY, "the record has no value")
    try:
        value.decode()  # the decoder passes over what it does not need, UTF-8 or not
    except UnicodeDecodeError as error:
        return Malformed(Reason.NOT_JSON, str(error))
    return decoded(decoder, value)


def invalid(error: str) -> Malformed:
    """A value that is JSON, but not as it has to be."""
    return Malformed(Reason.INVALID, error)
