"""Conversions over HTTP, through the real stack: uploaded, submitted, followed, downloaded and cancelled as a client does it."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
from httpx_sse import ServerSentEvent, connect_sse

from compose.archived import InClickHouse
from compose.clients import clickhouse
from compose.local.stack import LocalStack
from tests.audiostack import Gateway
from tests.filesstack import Run, files_run
from tests.media import describe, make, quiet

pytestmark = pytest.mark.stack

SECONDS = 3.0


@pytest.fixture
def run(stack: LocalStack, tmp_path: Path) -> Iterator[Run]:
    """A worker."""
    with files_run(stack, tmp_path) as made:
        yield made


@pytest.fixture
def gateway(run: Run) -> Iterator[httpx.Client]:
    """A client of a gateway before it."""
    made = Gateway(run, "gateway").start()
    with httpx.Client(base_url=made.url, timeout=20) as client:
        yield client
    made.stop()


def uploaded(run: Run, gateway: httpx.Client, file: Path, content_type: str) -> str:
    """The key of a file that went up by its URL."""
    wanted = {"file_name": file.name, "content_type": content_type, "size_bytes": file.stat().st_size}
    run.until(lambda: gateway.post("/api/uploads", json=wanted).status_code == 200, "uploads are taken")
    upload = gateway.post("/api/uploads", json=wanted).json()
    put = httpx.put(upload["upload_url"], content=file.read_bytes(), headers=upload["headers"])
    assert put.status_code == 200, put.text
    stored = gateway.post("/api/uploads/complete", json={"key": upload["key"]})
    assert stored.status_code == 200 and stored.json()["size_bytes"] == wanted["size_bytes"], stored.text
    return str(upload["key"])


def convert(gateway: httpx.Client, key: str, format: str = "mp3", **headers: str) -> httpx.Response:
    """Ask for a file in another format."""
    asked = {"source": {"key": key}, "format": format, "user": "ada", "quality": "low", "file_name": "my clip.webm"}
    return gateway.post("/api/convert", json=asked, headers=headers)


def state(gateway: httpx.Client, job_id: str) -> dict[str, Any]:
    """A job as it is shown."""
    answer = gateway.get(f"/api/convert/{job_id}")
    return answer.json() if answer.status_code == 200 else {}


def followed(gateway: httpx.Client, job_id: str, last_id: str = "") -> list[ServerSentEvent]:
    """A job's events to its end, as an SSE client hears them."""
    headers = {"Last-Event-ID": last_id} if last_id else {}
    with connect_sse(gateway, "GET", f"/api/convert/{job_id}/events", headers=headers) as source:
        return list(source.iter_sse()) if source.response.status_code == 200 else []


async def archived(run: Run, job_id: str) -> dict[str, Any]:
    """A job as ClickHouse keeps it."""
    sink = clickhouse(run.settings)
    try:
        return await InClickHouse(sink).job(job_id) or {}
    finally:
        await sink.close()


def test_a_file_goes_up_is_converted_and_comes_down(run: Run, gateway: httpx.Client, tmp_path: Path) -> None:
    clip = uploaded(run, gateway, make(tmp_path / "my clip.webm", SECONDS), "video/webm")
    key = {"Idempotency-Key": "first"}
    run.until(lambda: convert(gateway, clip, **key).status_code == 202, "a job is taken")
    told = convert(gateway, clip, **key)
    job_id = told.json()["job_id"]
    assert told.status_code == 202

    events = followed(gateway, job_id)
    assert {event.event for event in events[:-1]} == {"status"} and events[-1].event == "result"
    assert len({event.id for event in events}) == len(events), "nothing is told twice"
    shown = [event.json()["progress"] for event in events]
    assert shown == sorted(shown) and shown[-1] == 100
    assert [event.id for event in followed(gateway, job_id, events[-2].id)] == [events[-1].id]
    over = gateway.get(f"/api/convert/{job_id}/events", headers={"Last-Event-ID": events[-1].id})
    assert over.status_code == 204, "a browser asks no more"

    done = state(gateway, job_id)
    assert (done["status"], done["attempts"]) == ("completed", 1)
    assert events[-1].json()["r2_key"] == done["r2_key"], "the result event is the job as it is shown"
    down = httpx.get(done["download_url"])
    assert down.status_code == 200 and len(down.content) == done["size_bytes"]
    assert "my_clip.mp3" in down.headers["Content-Disposition"]
    (tmp_path / "down.mp3").write_bytes(down.content)
    found = describe(tmp_path / "down.mp3")
    assert (found.container, found.audio, found.video) == ("mp3", "mp3", None)
    assert abs(found.seconds - SECONDS) < 0.2 and abs(done["duration_ms"] - SECONDS * 1_000) < 200

    assert convert(gateway, clip, **key).json()["job_id"] == job_id, "the same key is the same job"
    assert convert(gateway, clip, "wav", **key).status_code == 422
    assert set(run.told()) == {job_id}

    long = uploaded(run, gateway, quiet(tmp_path / "long.flac", 1.0), "audio/flac")
    endless = convert(gateway, long, "opus").json()["job_id"]
    run.until(lambda: state(gateway, endless).get("status") == "converting", "it is converted")
    assert gateway.delete(f"/api/convert/{endless}").status_code == 202
    assert followed(gateway, endless)[-1].json()["status"] == "cancelled"
    run.until(lambda: not run.converting(), "its processes are gone", 10)
    assert gateway.delete(f"/api/convert/{endless}").status_code == 200

    (tmp_path / "broken.webm").write_bytes(b"this is no media file" * 100)
    broken = convert(gateway, uploaded(run, gateway, tmp_path / "broken.webm", "video/webm")).json()["job_id"]
    last = followed(gateway, broken)[-1]
    assert last.event == "error" and last.json()["error"] == state(gateway, broken)["error"]
    assert last.json()["error"]["type"] == "not_media" and "no audio or video" in last.json()["error"]["message"]
    assert last.json()["download_url"] is None
    assert gateway.get("/api/convert/never").status_code == 404

    def counted() -> dict[str, Any]:
        found: dict[str, Any] = gateway.get("/api/storage/stats").json()["files"]
        return found

    run.until(
        lambda: sum(counted()["jobs"][status] for status in ("completed", "failed", "cancelled")) == 3, "all count", 30
    )
    files = counted()
    assert files["conversions"] == {"objects": 1, "bytes": done["size_bytes"]}
    sent = [tmp_path / name for name in ("my clip.webm", "long.flac", "broken.webm")]
    assert files["uploads"] == {"objects": 3, "bytes": sum(file.stat().st_size for file in sent)}
    assert (files["jobs"]["success"], files["failures"]) == (0.5, {"not_media": 1})
    assert files["verifications"] == {"passed": 1, "failed": 0, "success": 1.0}
    times = files["times"]["under_10mb"]
    assert times["results"] == 1 and 0 < times["convert_ms"] < times["took_ms"] < 60_000
    own = files["gateway"]
    assert (own["presigns"]["success"], own["direct_uploads"]["stored"]) == (1.0, 3)

    for ended in (job_id, endless, broken):
        kept, owner = asyncio.run(archived(run, ended)), run.state(ended)
        if ended != job_id:
            assert kept.pop("file_name") is None, "only the key of a result has it"
        assert kept == {name: owner[name] for name in kept}, "what is kept is what the owner says until it forgets"

    environ = {**os.environ, **replace(run.settings, gateway_port=gateway.base_url.port or 0).environ()}
    command = [sys.executable, "-m", "compose.cli", "status"]
    shown = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=60).stdout
    for line in (
        "files: jobs 0 converting, 0 waiting; 1 completed, 1 failed, 1 cancelled; passed of presigns 100.0% of 3",
        "files: 1 results of < 10 MB, on average prepare ",
        "files: 1 coordinators with ",
        "storage: of file jobs completed 50.0% of 2, of their results verified 100.0% of 1; failed: 1 not_media",
        "gateway: presigned URLs signed 100.0% of ",
        "stored in the end 100.0% of 3",
    ):
        assert line in " ".join(shown.split()), shown
