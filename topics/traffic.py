"""The traffic event: its record, its strict decoding, and the one place that says what a valid event is."""

from __future__ import annotations

import ipaddress
import re
from functools import lru_cache
from typing import Annotated

import msgspec
from msgspec import Meta

from topics.malformed import Malformed as Malformed

MAX_ID_CHARS = 128
MAX_PATH_CHARS = 8_192
MAX_SHORT_CHARS = 64
MAX_AGENT_CHARS = 1_024
MAX_DIMENSIONS = 32
MAX_DIMENSION_CHARS = 256
#: 2100-01-01: a time past it is a unit mistake, not an early event.
MAX_TIMESTAMP_MS = 4_102_444_800_000
#: A day; longer response times are a unit mistake.
MAX_RESPONSE_MS = 86_400_000.0
MAX_BYTES = 1 << 50


_Id = Annotated[str, Meta(min_length=1, max_length=MAX_ID_CHARS)]
_Short = Annotated[str, Meta(min_length=1, max_length=MAX_SHORT_CHARS)]
_Dimension = Annotated[str, Meta(max_length=MAX_DIMENSION_CHARS)]


class TrafficEvent(msgspec.Struct, frozen=True, gc=False):
    """One request seen by an API gateway. `response_time_ms` is None where it was not measured.

    Types and ranges are checked by the decoder; `client_ip` is by `decode`.
    """

    event_id: _Id
    timestamp_ms: Annotated[int, Meta(ge=0, le=MAX_TIMESTAMP_MS)]
    method: _Short
    path: Annotated[str, Meta(min_length=1, max_length=MAX_PATH_CHARS)]
    status: Annotated[int, Meta(ge=100, le=599)]
    client_ip: str
    response_time_ms: Annotated[float, Meta(ge=0.0, le=MAX_RESPONSE_MS)] | None = None
    bytes: Annotated[int, Meta(ge=0, le=MAX_BYTES)] | None = None
    user_agent: Annotated[str, Meta(max_length=MAX_AGENT_CHARS)] | None = None
    dimensions: Annotated[dict[_Short, _Dimension], Meta(max_length=MAX_DIMENSIONS)] | None = None


#: The strict decoder of one value: raises msgspec.DecodeError (ValidationError for types and ranges) or UnicodeDecodeError.
_decode_strictly = msgspec.json.Decoder(TrafficEvent).decode


def decode(value: bytes | None) -> TrafficEvent | Malformed:
    """Decode and validate one record's value. Total: any bytes give an event or a `Malformed`."""
    if value is None:
        return Malformed("tombstone", "the record has no value; traffic events are never deleted by key")
    if not value:
        return Malformed("empty", "the record's value is empty")
    try:
        value.decode()  # the decoder passes over what it does not need, UTF-8 or not
        event = _decode_strictly(value)
    except msgspec.ValidationError as error:
        return Malformed("invalid", str(error))
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        return Malformed("not_json", str(error))
    return event if valid_ip(event.client_ip) else bad_ip(event)


def bad_ip(event: TrafficEvent) -> Malformed:
    """What is wrong with an event whose `client_ip` is none."""
    return Malformed("invalid", f"client_ip {event.client_ip[:60]!r} is not an IPv4 or IPv6 address")


_OCTET = "(?:25[0-5]|2[0-4][0-9]|1[0-9][0-9]|[1-9]?[0-9])"
_IPV4 = re.compile(rf"(?:{_OCTET}\.){{3}}{_OCTET}")


_IP_CHARS = 45


def valid_ip(text: str) -> bool:
    """Whether `text` is an IPv4 or IPv6 address (no zone, no port)."""
    return len(text) <= _IP_CHARS and _valid_ip(text)


# Of short texts alone: what is remembered of megabytes that are no address would fill the memory.
@lru_cache(maxsize=65_536)
def _valid_ip(text: str) -> bool:
    if _IPV4.fullmatch(text):
        return True
    if ":" not in text or "%" in text:
        return False
    try:
        ipaddress.IPv6Address(text)
    except ValueError:
        return False
    return True


def encode(event: TrafficEvent) -> bytes:
    """One event as the topic's JSON, absent fields left out."""
    fields = {name: value for name in event.__struct_fields__ if (value := getattr(event, name)) is not None}
    return msgspec.json.encode(fields)


def problem_of(event: TrafficEvent) -> str | None:
    """What is wrong with an event that was built, not decoded, or None: what a worker would say of it."""
    checked = decode(encode(event))
    return checked.error if isinstance(checked, Malformed) else None
