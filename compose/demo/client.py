"""The demo as a client of the gateway: it sends again what was not taken, and follows server-sent events to their end."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from typing import Any, NamedTuple

import orjson
from aiohttp import ClientError, ClientSession, ClientTimeout, StreamReader

#: What the gateway cannot answer now is asked again after so long, seconds.
_AGAIN_S = 0.2


class Refused(Exception):
    """The gateway answered what it should not."""


class Event(NamedTuple):
    """One that was sent by the server."""

    id: str
    name: str
    data: dict[str, Any]


def client(url: str) -> ClientSession:
    """A client of the gateway of this URL; closed by the caller."""
    return ClientSession(url, timeout=ClientTimeout(total=None, sock_read=15.0))


async def posted(
    http: ClientSession, path: str, body: Mapping[str, Any], headers: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """The answer to a POST, made again as long as the gateway is not ready. Raises Refused."""
    while True:
        async with http.post(path, json=body, headers=headers) as answer:
            if answer.status in (200, 202):
                told: dict[str, Any] = await answer.json()
                return told
            if answer.status != 503:
                raise Refused(f"POST {path} answered {answer.status}: {await answer.text()}")
        await asyncio.sleep(_AGAIN_S)


async def json_of(http: ClientSession, url: str) -> dict[str, Any]:
    """The answer to a GET. Raises Refused."""
    async with http.get(url) as answer:
        if answer.status != 200:
            raise Refused(f"GET {url} answered {answer.status}: {await answer.text()}")
        told: dict[str, Any] = await answer.json()
        return told


async def followed(http: ClientSession, path: str) -> AsyncIterator[Event]:
    """Events up to a `result` or an `error`; a stream that ends before is taken up again after the last one that came."""
    last_id = ""
    while True:
        headers = {"Last-Event-ID": last_id} if last_id else {}
        try:
            async with http.get(path, headers=headers) as answer:
                if answer.status not in (200, 503):
                    raise Refused(f"GET {path} answered {answer.status}: {await answer.text()}")
                if answer.status == 200:
                    async for event in _events(answer.content):
                        last_id = event.id
                        yield event
                        if event.name in ("result", "error"):
                            return
        except (ClientError, TimeoutError):
            # The gateway broke off; a client goes on as after any other end.
            pass
        await asyncio.sleep(_AGAIN_S)


async def _events(lines: StreamReader) -> AsyncIterator[Event]:
    fields: dict[str, str] = {}
    async for line in lines:
        name, _, value = line.decode().rstrip("\n").partition(":")
        if name:
            fields[name] = value.removeprefix(" ")
        elif "data" in fields:
            yield Event(fields["id"], fields["event"], orjson.loads(fields["data"]))
            fields = {}
