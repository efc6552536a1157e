"""JSON access logs, one object a line: the field names that nginx's variables have, and their usual aliases."""

from __future__ import annotations

import math
from datetime import datetime, timedelta
from typing import Any, TypeVar

import msgspec

from streams.traffic.accessline import EPOCH, AccessLine, agent_of, local_time_ms, path_of, plain_ip, split_request
from topics.traffic import Malformed

_decode = msgspec.json.Decoder(dict[str, Any]).decode
_T = TypeVar("_T")


def parse_json(line: bytes) -> AccessLine | Malformed:
    """Parse one JSON access-log line. Total: any bytes give a line or a `Malformed`.

    Numbers may be strings, as nginx writes them. Times: `msec` (seconds), `time_iso8601`, `@timestamp` or `time_local`;
    `request_time` is in seconds.
    """
    try:
        fields = _decode(line)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        return Malformed("not_json", str(error))
    try:
        return _line_of(fields)
    except ValueError as error:
        return Malformed("invalid", str(error))


def _line_of(fields: dict[str, Any]) -> AccessLine:
    method, path = _method_and_path(fields)
    return AccessLine(
        timestamp_ms=_time_ms(fields),
        method=method,
        path=path,
        status=_required(_whole(fields, "status"), "status"),
        client_ip=plain_ip(_required(_text(fields, "remote_addr", "client_ip", "remote_ip"), "remote_addr")),
        response_time_ms=_milliseconds(fields),
        bytes=_whole(fields, "body_bytes_sent", "bytes_sent", "bytes"),
        user_agent=agent_of(_text(fields, "http_user_agent", "user_agent")),
    )


def _method_and_path(fields: dict[str, Any]) -> tuple[str, str]:
    request = _text(fields, "request")
    if request is not None:
        return split_request(request)
    method = _required(_text(fields, "request_method", "method"), "request or method")
    return method, path_of(_required(_text(fields, "request_uri", "uri", "path"), "request or uri"))


def _time_ms(fields: dict[str, Any]) -> int:
    seconds = _number(fields, "msec")
    if seconds is not None:
        return round(seconds * 1000)
    iso = _text(fields, "time_iso8601", "@timestamp")
    if iso is not None:
        return _iso_ms(iso)
    return local_time_ms(_required(_text(fields, "time_local"), "msec, time_iso8601, @timestamp or time_local"))


def _iso_ms(text: str) -> int:
    try:
        moment = datetime.fromisoformat(text)
        if moment.tzinfo is None:
            raise ValueError
        return (moment - EPOCH) // timedelta(milliseconds=1)
    except (ValueError, OverflowError):
        raise ValueError(f"{text[:40]!r} is not an ISO 8601 time with a zone") from None


def _milliseconds(fields: dict[str, Any]) -> float | None:
    seconds = _number(fields, "request_time")
    return None if seconds is None else round(seconds * 1000, 3)


def _first(fields: dict[str, Any], names: tuple[str, ...]) -> tuple[str, Any]:
    for name in names:
        value = fields.get(name)
        if value is not None and value != "" and value != "-":
            return name, value
    return names[0], None


def _text(fields: dict[str, Any], *names: str) -> str | None:
    name, value = _first(fields, names)
    if value is not None and not isinstance(value, str):
        raise ValueError(f"{name} is not a string")
    return value


def _number(fields: dict[str, Any], *names: str) -> float | None:
    name, value = _first(fields, names)
    if value is None:
        return None
    try:
        number = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not math.isfinite(number):
        raise ValueError(f"{name} {str(value)[:40]!r} is not a number")
    return number


def _whole(fields: dict[str, Any], *names: str) -> int | None:
    number = _number(fields, *names)
    if number is not None and number != int(number):
        raise ValueError(f"{names[0]} {number} is not a whole number")
    return None if number is None else int(number)


def _required(value: _T | None, name: str) -> _T:
    if value is None:
        raise ValueError(f"the line has no {name}")
    return value
