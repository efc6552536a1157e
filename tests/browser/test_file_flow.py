"""The file-flow page in a real browser: upload with progress, live stages, download, cancel, and errors in words.

The gateway and the page are the real ones; the store and the worker behind them say what each test tells them to, from an
origin of their own, so that the browser holds them to CORS.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from playwright.async_api import BrowserContext, Page, Route, expect

from streams.web.files.jobs import Jobs
from streams.web.files.parts import Relay, SignedParts, SignedUpload, StoredFile, UploadLimits
from tests.filesweb import DONE, Store, Worker, file_gateway, jobs_of
from topics.files import Cancel, Stage, Submit
from topics.files_events import (
    JobAccepted,
    JobCancelled,
    JobCompleted,
    JobEvent,
    JobFailed,
    JobPrepared,
    JobProgressed,
    ResultUploaded,
)

RESULT = b"ID3 a result"
#: Where screenshots are left to be looked at; none are taken without it.
SHOTS = os.environ.get("BROWSER_SHOTS", "")
_CORS = {
    "Access-Control-Allow-Origin": "*",
    "Access-Control-Allow-Methods": "PUT, GET",
    "Access-Control-Allow-Headers": "content-type",
    "Access-Control-Expose-Headers": "ETag",
}


class HttpStore(Store):
    """A store that takes what is PUT to it, and gives it."""

    def __init__(self) -> None:
        super().__init__()
        self.url = ""
        self.refuses = False
        self.got: dict[str, bytes] = {}
        self.types: dict[str, str] = {}

    def upload(self, key: str, content_type: str, size_bytes: int, expires_s: int) -> SignedUpload:
        return SignedUpload(f"{self.url}/{key}", {"Content-Type": content_type})

    async def begin(self, key: str, content_type: str, size_bytes: int, part_bytes: int, *more: Any) -> SignedParts:
        count = -(-size_bytes // part_bytes)
        return SignedParts("up", [f"{self.url}/{key}?part={number}" for number in range(1, count + 1)])

    async def complete(self, key: str, upload_id: str, etags: Any) -> StoredFile:
        assert etags == {number: str(number) for number in range(1, len(etags) + 1)}
        self.got[key] = b"".join(self.got.pop(f"{key}?part={number}") for number in sorted(etags))
        return StoredFile(len(self.got[key]), "e")

    async def stored(self, key: str) -> StoredFile | None:
        return StoredFile(len(self.got[key]), "e") if key in self.got else None

    def link(self, key: str, file_name: str, expires_s: int) -> str:
        return f"{self.url}/{key}?as={file_name}"

    async def serve(self, request: web.Request) -> web.Response:
        if request.method == "OPTIONS":
            return web.Response(headers=_CORS)
        if request.method == "GET":
            name = request.query["as"]
            return web.Response(body=RESULT, headers={"Content-Disposition": f'attachment; filename="{name}"'})
        data = await request.read()
        if self.refuses:
            return web.Response(status=403, headers=_CORS)
        part = request.query.get("part")
        self.got[request.path[1:] + (f"?part={part}" if part else "")] = data
        self.types[request.path[1:]] = request.headers.get("Content-Type", "")
        return web.Response(headers={**_CORS, "ETag": f'"{part or "e"}"'})


class Flow:
    """What stands behind the page, and what a test makes of it."""

    def __init__(self, store: HttpStore, worker: Worker, jobs: Jobs, page: Page) -> None:
        self.store, self.worker, self.jobs, self.page = store, worker, jobs, page

    async def submitted(self) -> Submit:
        """The job that the page has asked for."""
        async with asyncio.timeout(10):
            while not self.worker.records:  # noqa: ASYNC110 - the log has no event
                await asyncio.sleep(0.02)
        record = self.worker.records[0]
        assert isinstance(record, Submit)
        return record

    def tell(self, job_id: str, kind: type[Any], status: str, progress: int, **fields: Any) -> None:
        """The worker tells one more event."""
        told = self.worker.events.setdefault(job_id, [])
        place = {"source_partition": 0, "epoch": 1, "source_offset": len(told), "number": 0}
        event: JobEvent = kind(job_id=job_id, user="", at_ms=1, progress=progress, **place, **fields)
        told.append(event)
        state = {**DONE, "job_id": job_id, "status": status, "progress": progress}
        if status == "failed":
            state["error"] = {"type": fields["error_type"], "message": fields["error"]}
        self.worker.states[job_id] = state
        self.jobs.note(job_id.encode(), None)

    async def shot(self, name: str) -> None:
        """A picture at phone and desktop width, and nothing that is wider than the page."""
        for width in (390, 1280):
            await self.page.set_viewport_size({"width": width, "height": 900})
            assert await self.page.evaluate("document.documentElement.scrollWidth") <= width
            if SHOTS:
                await self.page.screenshot(path=Path(SHOTS) / f"{name}-{width}.png", full_page=True)


@pytest.fixture
async def flow(browser: BrowserContext) -> AsyncIterator[Flow]:
    async with flowing(browser) as made:
        yield made


@pytest.fixture
async def relaying(browser: BrowserContext) -> AsyncIterator[Flow]:
    async with flowing(browser, Relay()) as made:
        yield made


@asynccontextmanager
async def flowing(browser: BrowserContext, relay: Relay | None = None) -> AsyncIterator[Flow]:
    """The page, opened, at a gateway that relays or does not."""

    store, worker = HttpStore(), Worker()
    held = web.Application(client_max_size=32 << 20)
    held.router.add_route("*", "/{key:.*}", store.serve)
    async with TestServer(held) as bucket, jobs_of(worker) as jobs:
        store.url = str(bucket.make_url("")).rstrip("/")
        limits = UploadLimits(parts_above_bytes=1 << 20, part_bytes=1 << 20)
        async with TestServer(file_gateway(store, jobs, limits, relay, api_key="k")) as server:
            page = browser.pages[0]
            troubles: list[str] = []
            page.on("pageerror", lambda error: troubles.append(str(error)))
            await page.goto(str(server.make_url("/file-flow-demo")))
            await page.get_by_label("API key").fill("k")
            await page.get_by_label("API key").blur()
            await expect(page.get_by_label("Format")).to_have_value("mp3")
            yield Flow(store, worker, jobs, page)
            await page.goto("about:blank")
            assert troubles == []


async def _start(flow: Flow, data: bytes, name: str = "My clip ü.webm") -> None:
    file = {"name": name, "mimeType": "video/webm", "buffer": data}
    await flow.page.get_by_label("Choose an audio or video file").set_input_files(file)
    await flow.page.get_by_role("button", name="Upload and convert").click()


@pytest.mark.parametrize("size", [1_000, (5 << 19) + 7])
async def test_a_file_goes_up_is_converted_and_comes_down(flow: Flow, size: int) -> None:
    page, data = flow.page, os.urandom(size)
    await flow.shot("start")
    await _start(flow, data)
    job = await flow.submitted()
    assert job.source.key is not None and flow.store.got == {job.source.key: data}
    assert (job.format, job.quality, job.file_name) == ("mp3", "medium", "My clip ü.webm")
    flow.tell(job.job_id, JobAccepted, "accepted", 0, format="mp3", quality="medium", submitted_ms=1)
    flow.tell(job.job_id, JobPrepared, "prepared", 35, attempt=1)
    await expect(page.locator("[aria-current]")).to_have_text("Prepared")
    flow.tell(job.job_id, JobProgressed, "converting", 50, attempt=1, stage=Stage.CONVERTING, percent=33)
    await expect(page.get_by_role("status")).to_have_text("Converting, 33 %")
    await expect(page.get_by_role("progressbar")).to_have_js_property("value", 50)
    await flow.shot("converting")
    flow.tell(job.job_id, ResultUploaded, "verifying", 80, attempt=1, size_bytes=7)
    await expect(page.locator("[aria-current]")).to_have_text("Verifying")
    end = {"r2_key": DONE["r2_key"], "size_bytes": 7, "checksum": "0" * 32, "duration_ms": 1}
    flow.tell(job.job_id, JobCompleted, "completed", 100, **end)
    await expect(page.get_by_role("status")).to_have_text("Ready.")
    await flow.shot("ready")
    async with page.expect_download() as coming:
        await page.get_by_role("link", name="Download x.mp3").click()
    download = await coming.value
    assert (download.suggested_filename, Path(await download.path()).read_bytes()) == ("x.mp3", RESULT)


async def test_a_failed_job_says_why_and_another_can_follow(flow: Flow) -> None:
    await _start(flow, b"this is no media file")
    job = await flow.submitted()
    reason = "the source is no audio or video file"
    flow.tell(job.job_id, JobFailed, "failed", 35, error_type="not_media", error=reason)
    await expect(flow.page.get_by_role("alert")).to_have_text(reason)
    await flow.shot("failed")
    await expect(flow.page.get_by_role("button", name="Upload and convert")).to_be_enabled()
    await expect(flow.page.get_by_role("button", name="Cancel")).to_be_hidden()


async def test_parts_that_break_off_are_sent_again_and_no_others(flow: Flow) -> None:
    puts: list[str] = []

    async def break_off(route: Route) -> None:
        if route.request.method == "PUT":
            puts.append(route.request.url)
            if len(puts) in (1, 3):
                return await route.abort("connectionreset")
        return await route.continue_()

    await flow.page.route(f"{flow.store.url}/**", break_off)
    data = os.urandom((5 << 19) + 7)
    await _start(flow, data)
    job = await flow.submitted()
    assert flow.store.got == {job.source.key: data}
    assert len(set(puts)) == 3 and len(puts) == 5


async def test_a_store_that_refuses_and_a_worker_that_is_away_are_told(flow: Flow) -> None:
    flow.store.refuses = True
    await _start(flow, b"x")
    await expect(flow.page.get_by_role("alert")).to_contain_text("did not take the file (it answered 403)")
    flow.store.refuses, flow.worker.trouble = False, "Kafka did not confirm: no broker answers"
    await _start(flow, b"x")
    await expect(flow.page.get_by_role("alert")).to_contain_text("no broker answers")
    await _start(flow, b"")
    await expect(flow.page.get_by_role("alert")).to_contain_text("This file is empty")


async def test_both_ways_of_an_upload_are_measured_side_by_side(relaying: Flow) -> None:
    page, data = relaying.page, os.urandom((5 << 20) + 7)
    await page.get_by_role("button", name="Upload both ways").click()
    await expect(page.get_by_text("Choose a file first")).to_be_visible()
    file = {"name": "My clip ü.webm", "mimeType": "video/webm", "buffer": data}
    await page.get_by_label("Choose an audio or video file").set_input_files(file)
    await page.get_by_role("button", name="Upload both ways").click()
    await expect(page.get_by_text("5.2 MB uploaded both ways.")).to_be_visible()
    (relayed,) = relaying.store.relayed.values()
    assert relayed == ("video/webm", data) and [*relaying.store.got.values()] == [data]
    cells = {await cell.get_attribute("data-of"): await cell.inner_text() for cell in await page.locator("td").all()}
    assert cells["relay-bytes"] == "5.2 MB"
    unit = cells["direct-bytes"].split()[1]
    assert unit in ("bytes", "kB") and not cells["direct-bytes"].startswith("0 "), "its requests, not the file"
    for name in ("direct-cpu", "relay-cpu", "direct-seconds", "relay-seconds"):
        assert 0 <= float(cells[name].removesuffix(" s")) < 60
    assert float(cells["relay-cpu"].removesuffix(" s")) > 0
    assert all("MB" in cells[f"{way}-memory"] for way in ("direct", "relay"))
    await expect(page.get_by_role("button", name="Upload and convert")).to_be_enabled()
    await relaying.shot("both-ways")


async def test_without_a_relay_nothing_is_compared(flow: Flow) -> None:
    await expect(flow.page.get_by_role("button", name="Upload both ways")).to_be_hidden()


async def test_a_job_can_be_cancelled(flow: Flow) -> None:
    await _start(flow, b"x")
    job = await flow.submitted()
    flow.tell(job.job_id, JobPrepared, "prepared", 35, attempt=1)
    await expect(flow.page.locator("[aria-current]")).to_have_text("Prepared")
    await flow.page.get_by_role("button", name="Cancel").click()
    async with asyncio.timeout(10):
        while Cancel(job.job_id) not in flow.worker.records:  # noqa: ASYNC110
            await asyncio.sleep(0.02)
    flow.tell(job.job_id, JobCancelled, "cancelled", 35)
    await expect(flow.page.get_by_role("alert")).to_have_text("The conversion was cancelled.")
