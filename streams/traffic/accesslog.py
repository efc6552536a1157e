"""Access logs as traffic events: nginx and Apache combined or common lines, and JSON access logs."""

from __future__ import annotations

import hashlib
import re
from typing import Any

from streams.traffic.accessjson import parse_json
from streams.traffic.accessline import AccessLine, agent_of, local_time_ms, plain_ip, split_request, unescape
from topics.traffic import Malformed, TrafficEvent, decode, encode

_HEAD = r"(\S+) \S+ .*?\[([^\]]{20,32})\] "
_QUOTED = r'"([^"\\]*(?:\\.[^"\\]*)*)"'
_head = re.compile(_HEAD + '"').match
_strict = re.compile(
    _HEAD + _QUOTED + r" (\d{3}|-) (\d+|-)(?: " + _QUOTED + " " + _QUOTED + r'|(?! "))( .*)?'
).fullmatch
_outcome = re.compile(r'" (\d{3}|-) (\d+|-)(?= |$)')
#: nginx's $request_time always has decimals; a whole number may be Apache's %D (microseconds) or %T: not guessed.
_request_time = re.compile(r'(?:.* )?"?(\d{1,6}\.\d{1,6})"?').fullmatch


def parse_line(line: bytes) -> AccessLine | Malformed:
    """Parse one line, without its line end, as JSON if it begins with a brace, else as combined or common format.

    Total: any bytes give a line or a `Malformed`.
    """
    return parse_json(line) if line.lstrip()[:1] == b"{" else parse_combined(line)


def parse_combined(line: bytes) -> AccessLine | Malformed:
    """Parse one line of the combined or common format, with or without further fields behind it.

    `-` for the size is 0 bytes, as Apache means it. A last field with decimals is nginx's `$request_time` in seconds.
    The path is without its query, and escapes (`\\"`, `\\xHH`) are undone.
    """
    if not line.strip():
        return Malformed("empty", "the line is empty")
    text = line.decode("utf-8", "backslashreplace")
    match = _strict(text)
    fields = match.groups() if match else _unescaped_quotes(text)
    if fields is None:
        return Malformed("not_combined", "not a line of the combined or common log format")
    client, time, request, status, size, _referer, agent, rest = fields
    try:
        timestamp_ms = local_time_ms(time)
    except ValueError as error:
        return Malformed("time", str(error))
    seconds = _request_time(rest) if rest else None
    method, path = split_request(unescape(request))
    return AccessLine(
        timestamp_ms,
        method,
        path,
        int(status) if status != "-" else 0,
        plain_ip(client),
        round(float(seconds[1]) * 1000, 3) if seconds else None,
        int(size) if size != "-" else 0,
        agent_of(unescape(agent)) if agent else None,
    )


def _unescaped_quotes(text: str) -> tuple[Any, ...] | None:
    """The fields of a line whose writer did not escape quotes: the agent ends at the last one. Linear on any input."""
    head = _head(text)
    outcome = _outcome.search(text, head.end()) if head else None
    if head is None or outcome is None:
        return None
    request, rest = text[head.end() : outcome.start()], text[outcome.end() :]
    if rest[:2] != ' "':
        return (*head.groups(), request, *outcome.groups(), None, None, rest)
    referer, _, agent_and_rest = rest[2:].partition('" "')
    agent, _, rest = agent_and_rest.rpartition('"')
    return (*head.groups(), request, *outcome.groups(), referer, agent, rest)


def event_json(line: AccessLine, event_id: str, shift_ms: int = 0) -> bytes | Malformed:
    """The line as a traffic event's JSON, its time moved by `shift_ms`; checked as a worker will check it."""
    value = encode(
        TrafficEvent(
            event_id,
            line.timestamp_ms + shift_ms,
            line.method,
            line.path,
            line.status,
            line.client_ip,
            line.response_time_ms,
            line.bytes,
            line.user_agent,
        )
    )
    checked = decode(value)
    return checked if isinstance(checked, Malformed) else value


def event_id(line: bytes, occurrence: int) -> str:
    """The id of a line's event: 128 bits of BLAKE2b, in hex, of the line and of how many equal lines came before it."""
    return hashlib.blake2b(b"%d\n%b" % (occurrence, line), digest_size=16).hexdigest()
