"""The demo's judgement of conversions: silent about what is right, and a line for anything that is not."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from compose.demo.client import Event
from compose.demo.clip import MADE_S, Media, clip_file, media_of
from compose.demo.files import Watch
from compose.demo.files_truth import WANTED, FoundFiles, Result, file_differences
from compose.ffmpeg import FfmpegFailed
from tests.media import make

JOBS = {"a": "mp4", "b": "mp3"}
SOURCE = Media("matroska,webm", 44.65, "vorbis", "vp8")
SUM = "0" * 32


def _found() -> FoundFiles:
    """The first was lost once with its worker."""
    results = {job_id: Result(Media(WANTED[f][0], 44.7, *WANTED[f][1:]), 10, SUM) for job_id, f in JOBS.items()}
    told = {"status": "completed", "size_bytes": 10, "checksum": SUM, "duration_ms": 44_640}
    states = {job_id: {**told, "r2_key": f"converted/{job_id}"} for job_id in JOBS}
    rows = [{"job_id": job_id, **states[job_id], "lost_attempts": int(job_id == "a")} for job_id in JOBS]
    ends = {job_id: ["JobCompleted"] for job_id in JOBS}
    return FoundFiles(states, rows, results, frozenset({"converted/a", "converted/b"}), ends)


def _told(found: FoundFiles) -> list[str]:
    return file_differences(JOBS, SOURCE, found)


def _with_row(which: str, **change: Any) -> FoundFiles:
    found = _found()
    return replace(found, rows=[{**row, **(change if row["job_id"] == which else {})} for row in found.rows])


def _with_result(**change: Any) -> FoundFiles:
    found = _found()
    return replace(found, results={**found.results, "a": replace(found.results["a"], **change)})


def _with_media(**change: Any) -> FoundFiles:
    return _with_result(media=replace(_found().results["a"].media, **change))


def test_it_is_silent_about_what_is_right() -> None:
    assert _told(_found()) == []


def test_it_tells_of_a_job_that_is_not_completed() -> None:
    found = _found()
    failed = {"status": "failed", "r2_key": None, "size_bytes": None, "checksum": None, "duration_ms": None}
    told = replace(found, states={**found.states, "a": {**failed}}, results={"b": found.results["b"]})
    problems = _told(told)
    assert "mp4 (a): the gateway's status is 'failed', not 'completed'" in problems
    assert "mp4 (a): the result is None, not 'what its link leads to'" in problems
    assert _told(_with_row("a", status="failed")) == ["mp4 (a): file_jobs.status is 'failed', not 'completed'"]


@pytest.mark.parametrize("ends", [[], ["JobFailed"], ["JobCompleted", "JobCompleted"]])
def test_it_tells_of_an_end_that_is_missing_or_another_or_there_twice(ends: list[str]) -> None:
    found = _found()
    (problem,) = _told(replace(found, ends={**found.ends, "a": ends}))
    assert problem == f"mp4 (a): files.progress.v1 has the ends {ends}, not one JobCompleted"


def test_it_tells_of_a_row_that_is_missing_or_there_twice_or_nobodys_or_of_another_result() -> None:
    found = _found()
    assert _told(replace(found, rows=[*found.rows, found.rows[0]])) == ["mp4 (a): file_jobs has 2 rows of it, not 1"]
    assert "mp3 (b): file_jobs has 0 rows of it, not 1" in _told(replace(found, rows=found.rows[:1]))
    assert _told(_with_row("b", job_id="c"))[0] == "c: file_jobs has it, and nobody submitted it"
    (problem,) = _told(_with_row("a", r2_key="converted/other"))
    assert problem == "mp4 (a): file_jobs.r2_key is 'converted/other', not 'converted/a'"
    (problem,) = _told(_with_row("a", duration_ms=30_000))
    assert problem == "mp4 (a): file_jobs' duration_ms / 1000 is 30.0, not 44.65"


@pytest.mark.parametrize("change", [{"container": "webm"}, {"audio": "mp3"}, {"audio": None}, {"video": "vp9"}])
def test_it_tells_of_a_result_in_another_format(change: dict[str, Any]) -> None:
    (problem,) = _told(_with_media(**change))
    assert problem.startswith("mp4 (a): container, sound and picture is (")


def test_it_tells_of_a_result_that_is_too_short_or_of_other_bytes() -> None:
    assert _told(_with_media(seconds=44.0)) == ["mp4 (a): its length in seconds is 44.0, not 44.65"]
    assert _told(_with_result(md5="f" * 32)) == [
        f"mp4 (a): {whose} checksum is '{SUM}', not '{'f' * 32}'" for whose in ("the gateway's", "file_jobs'")
    ]
    assert len(_told(_with_result(size_bytes=9))) == 2


def test_it_tells_of_objects_that_are_left_or_missing_and_of_a_kill_that_met_nothing() -> None:
    found = _found()
    left = replace(found, objects=found.objects | {"converted/lost"})
    assert _told(left) == ["converted/lost: lies in the bucket, and is no job's result"]
    gone = replace(found, objects=frozenset({"converted/b"}))
    assert _told(gone) == ["converted/a: is a job's result, and not in the bucket"]
    assert _told(_with_row("a", lost_attempts=0)) == ["the end of their worker has interrupted no conversion"]


def test_it_looks_into_files_by_playing_them(tmp_path: Path) -> None:
    found = asyncio.run(media_of(make(tmp_path / "a.mp4", 2.0)))
    assert (found.container, found.audio, found.video) == WANTED["mp4"] and abs(found.seconds - 2.0) < 0.2
    found = asyncio.run(media_of(make(tmp_path / "a.mp3", 2.0, video=False)))
    assert (found.container, found.audio, found.video) == WANTED["mp3"] and abs(found.seconds - 2.0) < 0.2
    (tmp_path / "broken.mp4").write_bytes((tmp_path / "a.mp4").read_bytes()[:-20_000])
    with pytest.raises(FfmpegFailed):
        asyncio.run(media_of(tmp_path / "broken.mp4"))


def test_a_clip_is_made_where_there_is_none(tmp_path: Path) -> None:
    async def made() -> Media:
        return await media_of(await clip_file(tmp_path, tmp_path / "nothing"))

    found = asyncio.run(made())
    assert found.audio and found.video == "vp8" and abs(found.seconds - MADE_S) < 0.2


def test_the_worker_is_killed_once_ffmpeg_is_at_work_and_not_before() -> None:
    asked, said, running = [], [], [""]

    def kill(program: str) -> str:
        asked.append(program)
        return running[0]

    watch = Watch(JOBS, kill, said.append)
    going = {"status": "converting", "progress": 45}
    for job_id, stage in (("a", "fetching"), ("b", "converting"), ("a", "fetching")):
        watch.tell(job_id, Event("1", "status", {**going, "stage": stage}))
    assert asked == [], "the first has not been fetched"
    watch.tell("a", Event("1", "status", {**going, "stage": "converting"}))
    assert (asked, watch.killed) == (["ffmpeg"], False), "nothing was at work"
    running[0] = "the worker"
    watch.tell("b", Event("1", "status", {"status": "verifying", "progress": 80}))
    watch.tell("a", Event("1", "status", {**going, "stage": "converting"}))
    assert (asked, watch.killed) == (["ffmpeg"] * 2, True)
    assert said == ["mp3 at 80 %, mp4 at 45 %: SIGKILL to the worker"]
