"""Records whose header `type` says which one they are, with a JSON object as value: what all topics of such records share."""

from __future__ import annotations

import re
from collections.abc import Collection
from enum import StrEnum
from typing import NamedTuple, TypeVar

import msgspec

from topics.headers import Headers, header
from topics.malformed import Malformed, decoded

T = TypeVar("T")

#: Objects and arrays in each other, in any field, known or not.
DEPTH_MAX = 32
# One that does not end goes to the end, so that no byte is looked at twice.
_STRING = re.compile(rb'"(?:[^"\\]|\\.)*"?', re.DOTALL)
_BRACKET = re.compile(rb"[][{}]")


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
    """A record's value, as `decoded`; it must be there, all of it UTF-8, and nested no deeper than DEPTH_MAX.

    How deep a decoder goes depends on how deep it is called, and what was taken once must be read again at a restore.
    """
    if not value:
        return Malformed(Reason.EMPTY, "the record has no value")
    try:
        value.decode()  # the decoder passes over what it does not need, UTF-8 or not
    except UnicodeDecodeError as error:
        return Malformed(Reason.NOT_JSON, str(error))
    if _deeper(value, DEPTH_MAX):
        return Malformed(Reason.NOT_JSON, f"the record is nested deeper than {DEPTH_MAX}")
    return decoded(decoder, value)


def invalid(error: str) -> Malformed:
    """A value that is JSON, but not as it has to be."""
    return Malformed(Reason.INVALID, error)


def _deeper(value: bytes, most: int) -> bool:
    if value.count(b"[") + value.count(b"{") <= most:
        return False
    depth = 0
    for bracket in _BRACKET.findall(_STRING.sub(b"", value)):
        depth += 1 if bracket in b"[{" else -1
        if depth > most:
            return True
    return False
