"""Whatever somebody uploads ends as a failed job with its reason: nothing leaks, nothing is left, and the worker lives on."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote

import httpx
import pytest

from compose.local.stack import LocalStack
from tests.audiostack import Gateway
from tests.filesstack import Run, Told, files_run
from tests.hostile import DURATION_H, MEMORY_MB, SECRET, SOURCE_MB, Hostile, hostile
from tests.media import make
from topics.files_events import JobCompleted, JobFailed

pytestmark = pytest.mark.stack

EVIL_NAME = "../../etc/a\"b'\r\nX-Evil: 1\x00\u202e;\u97f3.webm"
SAFE_NAME = "a_b___X-Evil__1_\u97f3.mp3"
#: Of no object, and of nothing else either.
UNSAFE_KEYS = {
    "dots": "../../../../etc/passwd",
    "inner-dots": "uploads/../../../etc/passwd",
    "quotes": "uploads/'\"\r\n\u202e%2e%2e%2f",
}


@pytest.fixture
def run(stack: LocalStack, tmp_path: Path) -> Iterator[Run]:
    """A worker with narrow limits."""
    limits = {
        "converter_source_mb": SOURCE_MB,
        "converter_duration_h": DURATION_H,
        "converter_memory_mb": MEMORY_MB,
        "files_per_user": 8,
    }
    with files_run(stack, tmp_path / "run", **limits, files_concurrency=8, converter_slots=4) as made:
        yield made


@pytest.fixture
def gateway(run: Run) -> Iterator[httpx.Client]:
    """A client of a gateway that relays."""
    made = Gateway(run, "gateway", files_relay=True).start()
    with httpx.Client(base_url=made.url, timeout=20) as client:
        yield client
    made.stop()


def test_hostile_files_are_failed_jobs_with_their_reasons(run: Run, gateway: httpx.Client, tmp_path: Path) -> None:
    cases = {f"case-{number}": case for number, case in enumerate(hostile(tmp_path))}
    for job_id, case in cases.items():
        key = run.objects.put(f"uploads/{job_id}/source", case.data)
        run.jobs.submit(job_id, key, case.format, options=case.options, file_name=EVIL_NAME)
    for job_id, key in UNSAFE_KEYS.items():
        run.jobs.submit(job_id, key, "wav")
    clip = make(tmp_path / "clip.webm", 1.0).read_bytes()
    named = _relayed(gateway, clip)
    good = _named(run, gateway, named)
    run.until(lambda: run.ended() >= {*cases, *UNSAFE_KEYS, good}, "all jobs are over")

    run.assert_sound()
    told = run.told()
    wrong = [case.name for job_id, case in cases.items() if not _is_told_well(told[job_id], case, str(tmp_path))]
    assert not wrong, [(name, told[job_id].end) for job_id, case in cases.items() if (name := case.name) in wrong]
    for job_id in UNSAFE_KEYS:
        end = told[job_id].end
        assert isinstance(end, JobFailed) and end.error_type in ("source_missing", "source_refused"), (job_id, end)
    ends = {job_id: one.end for job_id, one in told.items()}
    assert run.dead() == {job_id: end.error_type for job_id, end in ends.items() if isinstance(end, JobFailed)}
    assert run.worker.codes == [] and run.worker.running
    assert isinstance(told[good].end, JobCompleted)
    _assert_named(gateway, good)


def _is_told_well(told: Told, case: Hostile, folder: str) -> bool:
    """It failed at its first attempt, for its reason, in words that help and are nobody else's."""
    end = told.end
    if not isinstance(end, JobFailed) or told.attempts > 1 or told.voided():
        return False
    readable = 15 < len(end.error) <= 400 and end.error.isprintable() and "@ 0x" not in end.error
    reason = end.error_type in case.reasons and case.words in end.error
    return reason and readable and SECRET not in end.error and folder not in end.error


def _relayed(gateway: httpx.Client, data: bytes) -> str:
    """The key of a file that went up through the gateway's process, under a name that is none; what cannot be is refused."""
    name = {"file_name": EVIL_NAME}
    told = gateway.post("/api/relay", params=name, content=data, headers={"Content-Type": "video/webm"})
    assert told.status_code == 200, told.text
    assert told.json()["bytes"] == len(data)
    assert gateway.post("/api/relay", params=name, content=b"").status_code == 400
    assert gateway.post("/api/relay", params=name, content=bytes((SOURCE_MB << 20) + 1)).status_code == 413
    return str(told.json()["key"])


def _named(run: Run, gateway: httpx.Client, key: str) -> str:
    """The job of a good file under that name."""
    folder, _, name = key.rpartition("/")
    assert folder.startswith("uploads/") and name == SAFE_NAME.replace("mp3", "webm"), key
    asked = {"source": {"key": key}, "format": "mp3", "file_name": EVIL_NAME, "quality": "low"}
    run.until(
        lambda: gateway.post("/api/convert", json=asked, headers={"Idempotency-Key": "k"}).status_code == 202, key
    )
    for wrong in (
        {"source": {"key": ""}},
        {"file_name": ""},
        {"user": "a\nb"},
        {"options": {"trim": {"start_ms": -1}}},
    ):
        answer = gateway.post("/api/convert", json={**asked, **wrong})
        assert answer.status_code == 400, (wrong, answer.text)
    return str(gateway.post("/api/convert", json=asked, headers={"Idempotency-Key": "k"}).json()["job_id"])


def _assert_named(gateway: httpx.Client, job_id: str) -> None:
    """Its key and its link have the name that is safe."""
    state = gateway.get(f"/api/convert/{job_id}").json()
    assert state["r2_key"].endswith(f"_{SAFE_NAME}") and state["r2_key"].count("/") == 1
    down = httpx.get(state["download_url"])
    assert down.status_code == 200 and "x-evil" not in down.headers
    _, _, quoted = down.headers["Content-Disposition"].partition("filename*=UTF-8''")
    assert unquote(quoted) == SAFE_NAME
