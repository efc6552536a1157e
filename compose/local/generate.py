"""Traffic made up from a seed: event records for tests and the bench, an access log for the demo.

The same arguments give the same bytes. Values are drawn in blocks of columns; only the formatting is a loop.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from typing import TypeVar

import numpy as np

_T = TypeVar("_T")

_BLOCK = 16_384
_NOUNS = (b"users", b"orders", b"items", b"carts", b"search", b"images", b"reports", b"sessions", b"invoices", b"hooks")
_METHODS = (b"GET", b"POST", b"PUT", b"DELETE", b"PATCH", b"HEAD")
_METHOD_SHARES = (0.72, 0.15, 0.05, 0.03, 0.03, 0.02)
_STATUSES = (200, 201, 204, 301, 304, 400, 401, 403, 404, 429, 500, 502, 503)
_STATUS_SHARES = (0.78, 0.04, 0.02, 0.01, 0.04, 0.02, 0.01, 0.01, 0.03, 0.01, 0.015, 0.01, 0.005)
_AGENTS = (b"curl/8.14.1", b"okhttp/5.1.0", b"Mozilla/5.0 Firefox/140.0", b"Mozilla/5.0 Safari/605", b"httpx/0.28.1")
_QUIRKS_SHARE = 0.05

#: One drawn request: time, method, path, status, client, response time in ms, size, agent.
_Request = tuple[int, bytes, bytes, int, bytes, float, int, bytes]


@dataclass(frozen=True)
class Shape:
    """What the traffic is like. Shares are of all records.

    Times lie in the `span_ms` before `end_ms`, in order but for `disorder_ms`. Paths are taken unevenly, the first
    most; clients evenly. Response times are lognormal around 20 ms.
    """

    end_ms: int
    span_ms: int = 3_600_000
    paths: int = 300
    clients: int = 20_000
    duplicates: float = 0.0
    malformed: float = 0.0
    disorder_ms: int = 0


def generate_events(seed: int, count: int, shape: Shape) -> Iterator[tuple[bytes, bytes]]:
    """`count` records as (key, value): the event_id, and about 220 bytes of JSON.

    A duplicate is the very record of an earlier one. A malformed value is cut off, not UTF-8, or an event with a wrong
    type, a missing field or an impossible value.
    """
    rng = np.random.default_rng(seed)
    earlier: list[tuple[bytes, bytes]] = []
    for start, size in _blocks(count):
        ids = rng.bytes(16 * size).hex().encode()
        keys = [ids[at : at + 32] for at in range(0, 32 * size, 32)]
        rows = [
            (key, _event(key, request))
            for key, request in zip(keys, _draw(rng, shape, start, size, count), strict=True)
        ]
        for i in _some(rng, size, shape.malformed):
            rows[i] = (rows[i][0], _broken(rows[i][1], int(rng.integers(6))))
        earlier = _repeat(rng, earlier, rows, shape.duplicates)
        yield from earlier


def generate_log(seed: int, count: int, shape: Shape) -> Iterator[bytes]:
    """`count` lines of nginx's combined format with `$request_time`, without line ends, with the quirks of real logs.

    A duplicate is an equal line, which is an event of its own. Times are whole seconds.
    """
    rng = np.random.default_rng(seed)
    earlier: list[bytes] = []
    for start, size in _blocks(count):
        rows = [_line(request) for request in _draw(rng, shape, start, size, count)]
        for i in _some(rng, size, _QUIRKS_SHARE):
            rows[i] = _quirk(rows[i], int(rng.integers(8)))
        for i in _some(rng, size, shape.malformed):
            rows[i] = (rows[i][: int(rng.integers(40))], b"", b"\x00\xfe" * 20, b"upstream timed out")[
                int(rng.integers(4))
            ]
        earlier = _repeat(rng, earlier, rows, shape.duplicates)
        yield from earlier


def _blocks(count: int) -> Iterator[tuple[int, int]]:
    for start in range(0, count, _BLOCK):
        yield start, min(_BLOCK, count - start)


def _draw(rng: np.random.Generator, shape: Shape, start: int, size: int, count: int) -> Iterator[_Request]:
    order = np.arange(start + 1, start + size + 1) / count
    times = shape.end_ms - shape.span_ms + (order * shape.span_ms).astype(np.int64)
    times -= (rng.random(size) * shape.disorder_ms).astype(np.int64)
    # The cube gives the first of 300 paths 15 % of all requests.
    paths = (rng.random(size) ** 3 * shape.paths).astype(np.int64)
    clients = rng.integers(shape.clients, size=size)
    return zip(
        times.tolist(),
        _pick(rng, _METHODS, _METHOD_SHARES, size),
        map(_path, paths.tolist()),
        _pick(rng, _STATUSES, _STATUS_SHARES, size),
        map(_client, clients.tolist()),
        np.round(np.exp(rng.normal(3.0, 1.0, size)), 3).tolist(),
        rng.integers(200, 200_000, size).tolist(),
        _pick(rng, _AGENTS, None, size),
        strict=True,
    )


def _pick(rng: np.random.Generator, values: tuple[_T, ...], shares: tuple[float, ...] | None, size: int) -> list[_T]:
    return [values[i] for i in rng.choice(len(values), size, p=shares).tolist()]


def _some(rng: np.random.Generator, size: int, share: float) -> list[int]:
    found: list[int] = np.flatnonzero(rng.random(size) < share).tolist()
    return found


def _repeat(rng: np.random.Generator, earlier: list[_T], rows: list[_T], share: float) -> list[_T]:
    """The rows, some of them replaced by one of the last block or from further up in this one."""
    known = earlier + rows
    for i in _some(rng, len(rows), share):
        if at := i + len(earlier):
            known[at] = known[int(rng.integers(at))]
    return known[len(earlier) :]


@lru_cache(maxsize=100_000)
def _path(number: int) -> bytes:
    return b"/api/v1/%b/%d" % (_NOUNS[number % len(_NOUNS)], number)


@lru_cache(maxsize=100_000)
def _client(number: int) -> bytes:
    return b"10.%d.%d.%d" % (number >> 16 & 255, number >> 8 & 255, number & 255)


def _event(key: bytes, request: _Request) -> bytes:
    return (
        b'{"event_id":"%b","timestamp_ms":%d,"method":"%b","path":"%b","status":%d,"client_ip":"%b",'
        b'"response_time_ms":%.3f,"bytes":%d,"user_agent":"%b"}' % (key, *request)
    )


def _broken(value: bytes, kind: int) -> bytes:
    match kind:
        case 0:
            return value[:-20]
        case 1:
            return value.replace(b"/api/", b"/\xff\xfe/")
        case 2:
            return value.replace(b'"status":', b'"status":-')
        case 3:
            return value.replace(b'"client_ip":"', b'"client_ip":"no.')
        case 4:
            return value.replace(b'"bytes":', b'"bytes":"12","was":')
        case _:
            return value.replace(b'"method"', b'"verb"')


def _line(request: _Request) -> bytes:
    time_ms, method, path, status, client, response_ms, size, agent = request
    return b'%b - - [%b] "%b %b HTTP/1.1" %d %d "-" "%b" %.3f' % (
        client, _local_time(time_ms // 1000), method, path, status, size, agent, response_ms / 1000
    )  # fmt: skip


@lru_cache(maxsize=4_096)
def _local_time(second: int) -> bytes:
    return datetime.fromtimestamp(second, UTC).strftime("%d/%b/%Y:%H:%M:%S +0000").encode()


def _quirk(line: bytes, kind: int) -> bytes:
    client, _, rest = line.partition(b" ")
    request = rest.split(b'"', 2)[1]
    match kind:
        case 0:
            return line.replace(client, b"2001:db8::" + client.rpartition(b".")[2], 1)
        case 1:
            return line.replace(b" HTTP/1.1", b"?q=%22a%22&page=2 HTTP/2.0", 1)
        case 2:
            return line.replace(b'"-" "', b'"https://example.org/?a=\\"b\\"" "say \\"hi\\" ', 1)
        case 3:
            return line.replace(request, b"-", 1)
        case 4:
            return line.replace(request, b"\\x16\\x03\\x01\\x00", 1)
        case 5:
            return line.replace(request, b"PROPFIND /dav/\\xC3\\xA9 HTTP/1.1", 1)
        case 6:
            return line.replace(b" - - ", b" - Jane Doe ", 1)
        case _:
            return line.rpartition(b" ")[0]
