"""Server-sent events as the gateway writes them: named, each with an id that a client goes on from, and comments between."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any, NamedTuple

import orjson
from aiohttp import web

#: The header by which a client goes on, in the OpenAPI document.
LAST_EVENT_ID: dict[str, Any] = {
    "name": "Last-Event-ID",
    "in": "header",
    "description": "go on after this event",
    "schema": {"type": "string"},
}
#: The id of the end of what its owner has forgotten, and ClickHouse knows.
ARCHIVED_ID = "archived"
_HEADERS = {"Content-Type": "text/event-stream", "Cache-Control": "no-store", "X-Accel-Buffering": "no"}
# Neither has an empty line after it, with which some client libraries tell of an event without data.
_RETRY = b"retry: 1000\n"
_COMMENT = b":\n"


class Told(NamedTuple):
    """One event. After a `final` one nothing follows."""

    id: str
    event: str
    data: dict[str, Any]
    final: bool = False

    def encode(self) -> bytes:
        """As `text/event-stream` has it; JSON holds no line break."""
        return b"id: %b\nevent: %b\ndata: %b\n\n" % (self.id.encode(), self.event.encode(), orjson.dumps(self.data))


def last_event_id(request: web.Request) -> str:
    """The last event that a client has; empty without one."""
    return request.headers.get("Last-Event-ID", "")


async def send_events(
    request: web.Request, first: Told | None, rest: AsyncIterator[Told | None], *, breaks: tuple[type[Exception], ...]
) -> web.StreamResponse:
    """Write events as they come, and a comment for None, which keeps proxies from ending a quiet stream.

    Nothing is buffered here: the next event is asked for once the client has room. An exception of `breaks` ends the stream:
    the client connects again, and goes on from the last event that it has.
    """
    ends: tuple[type[Exception], ...] = (ConnectionError, *breaks)
    stream = web.StreamResponse(headers=_HEADERS)
    await stream.prepare(request)
    try:
        await stream.write(_encoded(first, _RETRY))
        retry = _RETRY if first is None else b""
        async for event in rest:
            await stream.write(_encoded(event, retry))
            retry = retry if event is None else b""
    except ends:
        pass
    return stream


def _encoded(event: Told | None, retry: bytes) -> bytes:
    return _COMMENT if event is None else retry + event.encode()
