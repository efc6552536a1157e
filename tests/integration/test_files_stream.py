"""File jobs through the real stack: submitted to Kafka, converted by real ffmpeg straight to the bucket, verified, ended once."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from compose.local.stack import LocalStack
from streams.files.converting import CACHE_CONTROL
from tests.filesstack import Run, files_run
from tests.media import describe, make, quiet
from topics.files_events import JobCompleted, JobFailed

pytestmark = pytest.mark.stack

#: Of a clip, and of a sound whose result goes in two parts of 5 MB.
SECONDS, LARGE_SECONDS = 3.0, 60.0


@pytest.fixture
def new_run(stack: LocalStack, tmp_path: Path) -> Iterator[Callable[..., Run]]:
    """Makes the test's run; keyword arguments are settings."""
    with ExitStack() as ends:
        yield lambda **settings: ends.enter_context(files_run(stack, tmp_path, **settings))


def test_jobs_are_converted_straight_to_the_bucket(new_run: Callable[..., Run], tmp_path: Path) -> None:
    run = new_run(files_parts_above_mb=1, files_part_mb=5)
    clip = run.objects.put("uploads/1/my clip.webm", make(tmp_path / "clip.webm", SECONDS).read_bytes())
    broken = run.objects.put("uploads/2/broken.webm", b"this is no media file" * 100)
    long = run.objects.put("uploads/3/long.flac", quiet(tmp_path / "long.flac", 1.0).read_bytes())
    large = run.objects.put("uploads/4/t.wav", make(tmp_path / "t.wav", LARGE_SECONDS, video=False).read_bytes())
    run.jobs.submit("endless", long, "opus", user="bob", quality="high")
    run.until(lambda: run.state("endless").get("status") == "converting", "the long one is converted")
    assert run.converting()
    run.jobs.cancel("endless")
    run.until(lambda: run.state("endless").get("status") == "cancelled", "it is cancelled")
    run.until(lambda: not run.converting() and not run.scratch(), "its processes and scratch are gone", 10)
    run.jobs.submit("sound", clip, "mp3", file_name="../Ein \u00c4rger'.webm")
    run.jobs.submit("sound", clip, "mp3", file_name="../Ein \u00c4rger'.webm")
    run.jobs.submit("picture", clip, "mp4", options={"scale": {"height": 90}})
    run.jobs.submit("parts", large, "wav", quality="high")
    run.jobs.submit("broken", broken)
    run.jobs.submit("missing", "uploads/9/nothing.webm")
    run.jobs.submit("unknown", clip, "xyz")
    everything = {"endless", "sound", "picture", "parts", "broken", "missing", "unknown"}
    run.until(lambda: run.ended() == everything, "all jobs are over")

    run.assert_sound()
    told = run.told()
    assert {job_id: type(told[job_id].end).__name__ for job_id in told} == {
        **dict.fromkeys(["sound", "picture", "parts"], "JobCompleted"),
        **dict.fromkeys(["broken", "missing", "unknown"], "JobFailed"),
        "endless": "JobCancelled",
    }
    assert run.dead() == {"broken": "not_media", "missing": "source_missing", "unknown": "unknown_format"}
    for job_id, seconds, container, audio, video in (
        ("sound", SECONDS, "mp3", "mp3", None),
        ("picture", SECONDS, "mov,mp4,m4a,3gp,3g2,mj2", "aac", "h264"),
        ("parts", LARGE_SECONDS, "wav", "pcm_s24le", None),
    ):
        end = told[job_id].end
        assert isinstance(end, JobCompleted)
        assert run.objects.head(end.r2_key)["CacheControl"] == CACHE_CONTROL
        found = describe(run.objects.get(end.r2_key, tmp_path / job_id))
        assert (found.container, found.audio, found.video) == (container, audio, video)
        assert abs(found.seconds - seconds) < 0.2 and abs(end.duration_ms - seconds * 1000) < 200
        assert [event.progress for event in told[job_id].events] == sorted(e.progress for e in told[job_id].events)
        assert [type(event).__name__ for event in told[job_id].events][:3] == [
            "JobAccepted",
            "AttemptStarted",
            "JobPrepared",
        ]
    failed = told["broken"].end
    assert isinstance(failed, JobFailed) and "no audio or video file" in failed.error
    _assert_owner_tells_the_same(run)
    _assert_rows(run)


def _assert_owner_tells_the_same(run: Run) -> None:
    for job_id, told in run.told().items():
        state = run.state(job_id)
        assert told.end is not None and state["status"] == type(told.end).__name__.removeprefix("Job").lower()
        _, body = run.ask(f"/files/jobs/{job_id}/events?after={told.events[-2].id}")
        assert [event["number"] for event in json.loads(body)["events"]] == [told.end.number]
    state = run.state("sound")
    assert (state["progress"], state["file_name"]) == (100, "Ein_\u00c4rger_.mp3")
    assert state["r2_key"].endswith(state["file_name"]) and "upload_url" not in state
    assert run.ask("/files/jobs/nobody")[0] == 404
    assert run.ask("/files/jobs/no%20id")[0] == 400
    _, body = run.ask("/files/jobs?user=bob")
    assert [job["job_id"] for job in json.loads(body)["jobs"]] == ["endless"]
    _, body = run.ask("/files/queue")
    totals = [part["totals"] for part in json.loads(body)["partitions"]]
    assert sum(part.get("completed", 0) for part in totals) == 3
    assert sum(part.get("duplicate", 0) for part in totals) == 1
    run.until(lambda: b'outcome="verifications_passed"' in run.ask("/metrics")[1], "its metrics show it")
    assert b"process_cpu_seconds_total" in run.ask("/metrics")[1]


def _assert_rows(run: Run) -> None:
    """ClickHouse shows each job as it ended."""

    def shown() -> dict[str, tuple[Any, ...]]:
        rows = run.rows(
            "SELECT job_id, status, error_type, r2_key, size_bytes, checksum, duration_ms, format, source_key, user "
            "FROM file_jobs"
        )
        return {str(job_id): tuple(rest) for job_id, *rest in rows}

    def true() -> dict[str, tuple[Any, ...]]:
        found = {}
        for job_id, submit in run.jobs.submitted.items():
            state = run.state(job_id)
            error = (state["error"] or {}).get("type", "")
            made = (state["r2_key"] or "", state["size_bytes"] or 0, state["checksum"] or "", state["duration_ms"] or 0)
            found[job_id] = (state["status"], error, *made, submit.format, submit.source.key, submit.user)
        return found

    run.until(lambda: shown() == true(), "ClickHouse shows the jobs")
    (row,) = run.rows("SELECT prepare_ms >= 0, convert_ms > 0, took_ms > 0 FROM file_jobs WHERE job_id = 'picture'")
    assert row == (True, True, True)
    assert run.rows("SELECT parts FROM file_jobs WHERE job_id IN ('parts', 'sound') ORDER BY job_id") == [(2,), (0,)]
