"""A source by URL is fetched from public addresses only, wherever it redirects to, and no more of it than is allowed."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from aiohttp import web

from compose.converter.limits import ConverterLimits
from compose.converter.pool import ProcessConverter
from compose.converter.scratch import Scratch
from compose.converter.transfer import fetch
from compose.converting import process_converter
from compose.settings import SettingError, Settings
from streams.files.converting import ConversionFailed, ConvertRequest
from streams.runtime.addresses import networks

HERE = networks("127.0.0.1")
DATA = b"sound" * 50_000


@pytest.fixture
async def server() -> AsyncIterator[str]:
    """A server on 127.0.0.1, whose paths behave as they are called."""

    async def answer(request: web.Request) -> web.StreamResponse:
        match request.path.split("/")[1:]:
            case ["ok"]:
                return web.Response(body=DATA)
            case ["to", *rest]:
                raise web.HTTPFound("/" + "/".join(rest))
            case ["away"]:
                raise web.HTTPFound(f"http://127.0.0.2:{request.url.port}/ok")
            case ["file"]:
                raise web.HTTPFound("file:///etc/passwd")
            case ["broken"]:
                return web.Response(status=302, headers={"Location": "http://[::1/"})
            case ["loop"]:
                raise web.HTTPTemporaryRedirect("/loop")
            case ["endless"]:
                response = web.StreamResponse()
                await response.prepare(request)
                while True:
                    await response.write(b"x" * 100_000)
            case ["slow"]:
                await asyncio.sleep(30)
        raise web.HTTPForbidden

    app = web.Application()
    app.router.add_get("/{path:.*}", answer)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    await runner.cleanup()


async def _fetched(url: str, to: Path, allowed: object = HERE, within_s: float = 5.0) -> int:
    return await fetch(url, to, 1 << 20, within_s, lambda share: None, allowed)  # type: ignore[arg-type]


@pytest.mark.parametrize("path", ["/ok", "/to/ok", "/to/to/to/ok"])
async def test_what_a_url_leads_to_is_fetched(server: str, tmp_path: Path, path: str) -> None:
    assert await _fetched(server + path, tmp_path / "source") == len(DATA)
    assert (tmp_path / "source").read_bytes() == DATA


@pytest.mark.parametrize(
    ("path", "code"),
    [
        ("/away", "address_not_public"),
        ("/to/away", "address_not_public"),
        ("/file", "bad_url"),
        ("/broken", "bad_url"),
        ("/loop", "too_many_redirects"),
        ("/endless", "source_too_large"),
        ("/forbidden", "source_refused"),
    ],
)
async def test_what_may_not_be_fetched_fails_for_good(server: str, tmp_path: Path, path: str, code: str) -> None:
    with pytest.raises(ConversionFailed) as failed:
        await _fetched(server + path, tmp_path / "source")
    assert (failed.value.code, failed.value.again) == (code, False)
    assert server not in str(failed.value)


@pytest.mark.parametrize(
    "url", ["http://localhost:1/ok", "http://127.0.0.1:1/", "http://[::1]:1/", "http://169.254.169.254/"]
)
async def test_no_private_address_is_asked(tmp_path: Path, url: str) -> None:
    with pytest.raises(ConversionFailed) as failed:
        await _fetched(url, tmp_path / "source", ())
    assert (failed.value.code, failed.value.again) == ("address_not_public", False)


@pytest.mark.parametrize("url", ["http://user:pw@127.0.0.1/", "http://", "ftp://127.0.0.1/x"])
async def test_what_is_no_url_is_refused(tmp_path: Path, url: str) -> None:
    with pytest.raises(ConversionFailed, match="the source's URL"):
        await _fetched(url, tmp_path / "source")


async def test_a_source_that_does_not_come_is_given_up(server: str, tmp_path: Path) -> None:
    with pytest.raises(ConversionFailed) as failed:
        await _fetched(server + "/slow", tmp_path / "source", within_s=0.3)
    assert (failed.value.code, failed.value.again) == ("source_timeout", True)


async def test_a_converter_takes_urls_only_where_they_are_allowed(tmp_path: Path) -> None:
    scratch = Scratch(tmp_path)
    converter = ProcessConverter(scratch, ConverterLimits(), "http://store:9000", 1)
    asked = {"format": "mp3", "upload_url": "http://store:9000/b/k", "upload_key": "k", "content_type": "audio/mpeg"}
    with pytest.raises(ConversionFailed, match="no sources by URL"):
        await converter.convert(ConvertRequest(url="http://8.8.8.8/", foreign=True, **asked), lambda stage, share: None)
    with pytest.raises(ConversionFailed, match="does not lead to"):
        await converter.convert(ConvertRequest(url="http://8.8.8.8/", **asked), lambda stage, share: None)
    converter.close()
    with pytest.raises(SettingError, match="FILES_URL_NETWORKS"):
        process_converter(Settings(data_dir=tmp_path, files_url_networks="localhost"))
