"""What an access-log line says of one request, and how its fields are read whatever the format around them."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from functools import lru_cache

import msgspec

from topics.traffic import MAX_AGENT_CHARS

#: Method and path of a line whose request is no request line (`-`, a TLS handshake on a plain port): its status,
#: bytes and client are still true, and its bytes would otherwise make a path of their own.
NO_REQUEST = "-"
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)

_request = re.compile(r"([!#$%&'*+.^_`|~0-9A-Za-z-]{1,64}) +(\S.*)").fullmatch
_protocol = re.compile(r" +HTTP/\d(?:\.\d)?$")
_escape = re.compile(rb"\\(?:x([0-9A-Fa-f]{2})|(.))", re.DOTALL)
_PLAIN_ESCAPES = {b"n": b"\n", b"r": b"\r", b"t": b"\t", b"b": b"\b", b"f": b"\f", b"v": b"\v"}
_minute = re.compile(r"(\d\d)/([A-Z][a-z]{2})/(\d{4}):(\d\d):(\d\d) ([+-]\d\d)(\d\d)", re.ASCII).fullmatch
_MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")


class AccessLine(msgspec.Struct, frozen=True, gc=False):
    """One request. `response_time_ms`, `bytes` and `user_agent` are None where the line does not say."""

    timestamp_ms: int
    method: str
    path: str
    status: int
    client_ip: str
    response_time_ms: float | None = None
    bytes: int | None = None
    user_agent: str | None = None


def split_request(request: str) -> tuple[str, str]:
    """Method and path of a request line (`GET /a?b HTTP/2.0` -> `GET`, `/a`).

    A target may hold spaces; an absolute target (`GET http://host/a`) gives its path; no request line gives `-`, `-`.
    """
    match = _request(request)
    if match is None:
        return NO_REQUEST, NO_REQUEST
    method, target = match.groups()
    return method, path_of(_protocol.sub("", target))


def path_of(target: str) -> str:
    """The path of a request target, without query and fragment."""
    path = target.partition("?")[0].partition("#")[0]
    if path[:7].lower() == "http://" or path[:8].lower() == "https://":
        path = "/" + path.partition("://")[2].partition("/")[2]
    return path or "/"


def unescape(text: str) -> str:
    """Undo the escapes of a quoted field: `\\"`, `\\\\`, Apache's `\\t`, and `\\xHH` as UTF-8 bytes."""
    if "\\" not in text:
        return text
    return _escape.sub(_unescaped, text.encode()).decode("utf-8", "backslashreplace")


def _unescaped(match: re.Match[bytes]) -> bytes:
    code, char = match.groups()
    return bytes.fromhex(code.decode()) if code else _PLAIN_ESCAPES.get(char, char)


def plain_ip(client: str) -> str:
    """An address without IPv6 brackets and zone."""
    return client.strip("[]").partition("%")[0]


def agent_of(text: str | None) -> str | None:
    """A user agent cut to what an event may carry; `-` is none."""
    return text[:MAX_AGENT_CHARS] if text and text != "-" else None


def local_time_ms(text: str) -> int:
    """Unix milliseconds of `17/May/2015:10:05:03 +0000`. Raises ValueError."""
    try:
        if text[17] != ":" or text[20] != " " or text[18] > "6":
            raise ValueError
        return _minute_ms(text[:17] + text[20:]) + int(text[18:20]) * 1000
    except (ValueError, IndexError, OverflowError):
        raise ValueError(f"{text[:40]!r} is not a time like 17/May/2015:10:05:03 +0000") from None


@lru_cache(maxsize=65_536)
def _minute_ms(text: str) -> int:
    match = _minute(text)
    if match is None:
        raise ValueError
    day, month, year, hour, minute, zone_h, zone_m = match.groups()
    local = datetime(int(year), 1 + _MONTHS.index(month), int(day), int(hour), int(minute), tzinfo=UTC)
    offset = timedelta(hours=int(zone_h), minutes=int(zone_h[0] + zone_m))
    return (local - EPOCH - offset) // timedelta(milliseconds=1)
