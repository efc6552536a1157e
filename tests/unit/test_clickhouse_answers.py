"""Answers of the local ClickHouse to clients that do not take them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from aiohttp.test_utils import TestServer

from compose.local import clickhouse_http
from compose.local.clickhouse_engine import Work
from compose.local.clickhouse_http import Account, application


class _Talkative:
    """An engine whose every answer is longer than what sockets hold."""

    timezone = "UTC"

    def __init__(self) -> None:
        self.ended: list[BaseException] = []

    def run(self, work: Work, emit: Callable[[bytes], None]) -> dict[str, int]:
        try:
            for _ in range(100):
                emit(bytes(1 << 20))
        except BaseException as error:
            self.ended.append(error)
            raise
        return {}


async def test_a_client_that_takes_nothing_does_not_hold_a_query_for_ever(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(clickhouse_http, "SEND_TIMEOUT_S", 0.3)
    engine: Any = _Talkative()
    async with asyncio.timeout(20), TestServer(application(engine, Account(), tmp_path)) as server:
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port, limit=1024)
        writer.write(b"GET /?query=SELECT+1 HTTP/1.1\r\nHost: here\r\n\r\n")
        while not engine.ended:  # noqa: ASYNC110 - a thread's end sets no event
            await asyncio.sleep(0.01)
        assert isinstance(engine.ended[0], ConnectionError)
        with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
            await reader.readexactly(100 << 20)
        writer.close()
