"""A result is uploaded to whatever speaks HTTP, also where nobody answers `Expect: 100-continue`."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from compose.converter import transfer
from streams.files.converting import ConvertRequest

DATA = bytes(range(256)) * 4_000


@pytest.fixture
async def deaf() -> AsyncIterator[str]:
    """A store that says nothing before it has the whole body."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = await reader.readuntil(b"\r\n\r\n")
            length = next(int(line[15:]) for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:"))
            sum_ = hashlib.md5(await reader.readexactly(length)).hexdigest()
            writer.write(f'HTTP/1.1 200 OK\r\nETag: "{sum_}"\r\nContent-Length: 0\r\n\r\n'.encode())
            await writer.drain()
        except asyncio.IncompleteReadError:
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/a"
    server.close()


async def test_who_does_not_say_that_it_wants_the_body_gets_it(
    deaf: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transfer, "CONTINUE_S", 0.2)
    file = tmp_path / "result"
    file.write_bytes(DATA)
    request = ConvertRequest(url="http://s", format="mp3", upload_url=deaf, upload_key="k", content_type="audio/mpeg")
    sum_, parts = await transfer.upload(request, file, 10.0, lambda share: None)
    assert (sum_, parts) == (hashlib.md5(DATA).hexdigest(), ())
