"""What came of an effect, as a record of the partition that asked for it: JSON under a header `type` of its own. `damaged`:
an attempt found other bytes in the store than were written. `segments`: of how many the recording was, or was to be, made.

They are written inside the owner's transaction, so that an owner that was fenced reports nothing. `retry` comes from
outside: a dead letter of a failed segment, sent back as it is, asks for the segment again.
"""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta

from topics.headers import Headers, header
from topics.malformed import Malformed
from topics.records import Emit

_Count = Annotated[int, Meta(ge=0, le=(1 << 63) - 1)]


class Stored(msgspec.Struct, frozen=True, omit_defaults=True):
    """A segment rests in the object store. `md5` is of the object, in hex."""

    first_seq: _Count
    last_seq: _Count
    size: _Count
    md5: Annotated[str, Meta(pattern="^[0-9a-f]{32}$")]
    attempts: _Count
    damaged: bool = False


class Failed(msgspec.Struct, frozen=True, omit_defaults=True):
    """A segment could not be stored, and nobody tries any more."""

    first_seq: _Count
    last_seq: _Count
    attempts: _Count
    error: str
    damaged: bool = False


class Recorded(msgspec.Struct, frozen=True, omit_defaults=True):
    """The recording and its manifest rest in the object store, verified."""

    key: Annotated[str, Meta(max_length=1024)]
    size: _Count
    md5: Annotated[str, Meta(pattern="^[0-9a-f]{32}$")]
    duration_ms: _Count
    damaged: bool = False
    segments: _Count | None = None


class Unrecorded(msgspec.Struct, frozen=True, omit_defaults=True):
    """The recording cannot be made of what is there."""

    error: str
    damaged: bool = False
    segments: _Count | None = None


class Removed(msgspec.Struct, frozen=True):
    """The segments are no longer beside the recording."""


class Retry(msgspec.Struct, frozen=True):
    """A failed segment is to be tried again."""

    first_seq: _Count


Outcome = Stored | Failed | Recorded | Unrecorded | Removed | Retry

_KINDS: dict[bytes, type[Outcome]] = {
    b"stored": Stored,
    b"failed": Failed,
    b"recorded": Recorded,
    b"unrecorded": Unrecorded,
    b"removed": Removed,
    b"retry": Retry,
}
_NAMES = {kind: name for name, kind in _KINDS.items()}
_DECODERS = {name: msgspec.json.Decoder(kind) for name, kind in _KINDS.items()}


def decode(value: bytes | None, headers: Headers) -> Outcome | Malformed | None:
    """The outcome in a record; None for one of another type."""
    decoder = _DECODERS.get(header(headers, "type") or b"")
    if decoder is None:
        return None
    try:
        outcome: Outcome = decoder.decode(value or b"")
    except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
        return Malformed("bad_outcome", str(error))
    return outcome


def encode(outcome: Outcome, session_id: str, topic: str, partition: int) -> Emit:
    """The record of an outcome."""
    headers = [("type", _NAMES[type(outcome)])]
    return Emit(topic, session_id.encode(), msgspec.json.encode(outcome), headers, partition)
