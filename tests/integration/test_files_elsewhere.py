"""Jobs whose source or whose converter is elsewhere: behind a URL, and behind HTTP in a service that is killed at work."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import psutil
import pytest

from compose.local.process import free_port
from compose.local.stack import LocalStack
from tests.chaos.workers import Worker
from tests.filesstack import QUICK, Run, files_run
from tests.media import describe, make, quiet
from topics.files import Source
from topics.files_events import JobCompleted, JobFailed

pytestmark = pytest.mark.stack


@pytest.fixture
def service(stack: LocalStack, tmp_path: Path) -> Iterator[Worker]:
    """A converter service, which takes sources by URL from 127.0.0.1 and no other private address."""
    own = {"converter_port": free_port(), "converter_key": "k", "data_dir": tmp_path / "service"}
    urls = {"files_urls": True, "files_url_networks": "127.0.0.1"}
    made = Worker("converter", stack.settings(**{**QUICK, **own, **urls}), ("compose.cli", "converter")).start()
    yield made
    made.kill()


@pytest.fixture
def run(stack: LocalStack, service: Worker, tmp_path: Path) -> Iterator[Run]:
    """A worker that has the service convert."""
    settings = {"converter_url": f"http://127.0.0.1:{service.settings.converter_port}", "converter_key": "k"}
    with files_run(stack, tmp_path, **settings, files_urls=True, files_retries=6) as made:
        yield made


@pytest.fixture
def server(tmp_path: Path) -> Iterator[str]:
    """Gives a clip at `/clip`, and sends whoever asks for anything else to an address that is private."""
    clip = make(tmp_path / "clip.webm", 1.0).read_bytes()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if self.path == "/clip":
                self.send_response(200)
                self.send_header("Content-Length", str(len(clip)))
                self.end_headers()
                self.wfile.write(clip)
            else:
                self.send_response(302)
                self.send_header("Location", f"http://127.0.0.2:{self.server.server_port}/clip")  # type: ignore[attr-defined]
                self.send_header("Content-Length", "0")
                self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("0.0.0.0", 0), Handler) as made:
        threading.Thread(target=made.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{made.server_port}"
        made.shutdown()


def _ffmpegs(service: Worker) -> list[psutil.Process]:
    found = []
    with suppress(psutil.Error):
        for process in psutil.Process(service.pid).children(recursive=True):
            with suppress(psutil.Error):
                found += [process] if "ffmpeg" in Path(process.exe()).name else []
    return found


def test_a_converter_elsewhere_is_killed_and_urls_lead_where_they_may(
    run: Run, service: Worker, server: str, tmp_path: Path
) -> None:
    long = run.objects.put("uploads/1/long.flac", quiet(tmp_path / "long.flac", 0.25).read_bytes())
    run.jobs.submit("killed", long, "opus")
    run.until(lambda: run.state("killed").get("progress", 0) > 45 and bool(_ffmpegs(service)), "it is converted there")
    assert run.converting() == [], "the worker itself converts nothing"
    working = _ffmpegs(service)
    service.kill()
    service.start()
    run.until(lambda: run.ended() == {"killed"}, "it is over")
    run.assert_sound()
    told = run.told()["killed"]
    assert isinstance(told.end, JobCompleted) and told.attempts > 1 and set(told.voided()) == {"converter_lost"}
    assert not any(process.is_running() for process in working)
    assert abs(describe(run.objects.get(told.end.r2_key, tmp_path / "a")).seconds - 900) < 1
    assert not [*(service.settings.data_dir / "scratch").glob("converter-*/job-*")], "what it had begun is swept"

    run.jobs.submit("url", Source(url=f"{server}/clip"))
    run.jobs.submit("redirected", Source(url=f"{server}/elsewhere"))
    run.jobs.submit("private", Source(url="http://169.254.169.254/latest/meta-data"))
    run.until(lambda: run.ended() == {"killed", "url", "redirected", "private"}, "all are over")
    told_all = run.told()
    assert isinstance(told_all["url"].end, JobCompleted)
    for job_id in ("redirected", "private"):
        end = told_all[job_id].end
        assert isinstance(end, JobFailed) and end.error_type == "address_not_public", end
        assert told_all[job_id].voided() == [], "nor is it tried again"
