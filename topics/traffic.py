"""The traffic event: its record, its strict decoding, and the one place that says what a valid event is."""

from __future__ import annotations

import ipaddress
import math
from functools import lru_cache

import msgspec

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


class TrafficEvent(msgspec.Struct, frozen=True, gc=False):
    """One request seen by an API gateway. `response_time_ms` is None where it was not measured."""

    event_id: str
    timestamp_ms: int
    method: str
    path: str
    status: int
    client_ip: str
    response_time_ms: float | None = None
    bytes: int | None = None
    user_agent: str | None = None
    dimensions: dict[str, str] | None = None


class Malformed(msgspec.Struct, frozen=True):
    """Why a record is no event: `reason` is a label of few values, `error` the sentence."""

    reason: str
    error: str


_decoder = msgspec.json.Decoder(TrafficEvent)
_decode = _decoder.decode


def decode(value: bytes | None) -> TrafficEvent | Malformed:
    """Decode and validate one record's value. Total: any bytes give an event or a `Malformed`."""
    if value is None:
        return Malformed("tombstone", "the record has no value; traffic events are never deleted by key")
    if not value:
        return Malformed("empty", "the record's value is empty")
    try:
        event = _decode(value)
    except msgspec.ValidationError as error:
        return Malformed("invalid", str(error))
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        return Malformed("not_json", str(error))
    problem = problem_of(event)
    return event if problem is None else Malformed("invalid", problem)


def problem_of(event: TrafficEvent) -> str | None:
    """What is wrong with a decoded event's values, or None. Types are the decoder's business."""
    if not 0 < len(event.event_id) <= MAX_ID_CHARS:
        return f"event_id has {len(event.event_id)} characters; 1 to {MAX_ID_CHARS} are allowed"
    if not 0 <= event.timestamp_ms <= MAX_TIMESTAMP_MS:
        return f"timestamp_ms {event.timestamp_ms} is not a Unix time in milliseconds"
    if not 100 <= event.status <= 599:
        return f"status {event.status} is not an HTTP status (100 to 599)"
    if not 0 < len(event.method) <= MAX_SHORT_CHARS:
        return f"method has {len(event.method)} characters; 1 to {MAX_SHORT_CHARS} are allowed"
    if not 0 < len(event.path) <= MAX_PATH_CHARS:
        return f"path has {len(event.path)} characters; 1 to {MAX_PATH_CHARS} are allowed"
    if not valid_ip(event.client_ip):
        return f"client_ip {event.client_ip[:60]!r} is not an IPv4 or IPv6 address"
    time_ms = event.response_time_ms
    if time_ms is not None and not (0.0 <= time_ms <= MAX_RESPONSE_MS and math.isfinite(time_ms)):
        return f"response_time_ms {time_ms} is not within 0 to {MAX_RESPONSE_MS:.0f}"
    if event.bytes is not None and not 0 <= event.bytes <= MAX_BYTES:
        return f"bytes {event.bytes} is not within 0 to 2^50"
    return _optional_problem(event)


def _optional_problem(event: TrafficEvent) -> str | None:
    if event.user_agent is not None and len(event.user_agent) > MAX_AGENT_CHARS:
        return f"user_agent has {len(event.user_agent)} characters; {MAX_AGENT_CHARS} are allowed"
    if event.dimensions is None:
        return None
    if len(event.dimensions) > MAX_DIMENSIONS:
        return f"{len(event.dimensions)} dimensions; {MAX_DIMENSIONS} are allowed"
    for name, value in event.dimensions.items():
        if not 0 < len(name) <= MAX_SHORT_CHARS or len(value) > MAX_DIMENSION_CHARS:
            return (
                f"dimension {name[:60]!r} is over {MAX_SHORT_CHARS} characters, or its value over {MAX_DIMENSION_CHARS}"
            )
    return None


@lru_cache(maxsize=65_536)
def valid_ip(text: str) -> bool:
    """Whether `text` is an IPv4 or IPv6 address (no zone, no port)."""
    if "%" in text or len(text) > 45:
        return False
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


def encode(event: TrafficEvent) -> bytes:
    """One event as the topic's JSON, absent fields left out."""
    fields = {name: value for name in event.__struct_fields__ if (value := getattr(event, name)) is not None}
    return msgspec.json.encode(fields)
