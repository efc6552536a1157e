"""What an owner answers about its file jobs, and that a worker's stream is put together as the settings have it."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer

from compose.clients import bucket
from compose.files_stream import files as composed
from compose.settings import SettingError, Settings
from streams.files.routes import FilesRoutes
from streams.runtime.outside import Seat
from tests.filesfold import World, submit
from topics import files, specs
from topics.malformed import Malformed
from topics.partitioning import partition_of


async def _asked(world: World, *paths: str, partitions: int = 1, ready: bool = True) -> list[tuple[int, Any]]:
    """Status and document of each request to a worker that owns partition 0."""
    event = asyncio.Event()
    if ready:
        event.set()
    worker: Any = SimpleNamespace(partitions=partitions, runners={0: SimpleNamespace(fold=world.fold, ready=event)})
    app = web.Application()
    app.router.add_routes(FilesRoutes(worker).all())
    async with TestClient(TestServer(app)) as client:
        answers = [await client.get(path) for path in paths]
        return [(answer.status, json.loads(await answer.read())) for answer in answers]


async def test_state_events_and_lists_of_jobs() -> None:
    world = World()
    for job_id in "abc":
        world.say(submit(job_id, user="ada" if job_id == "a" else "bob", file_name="x.webm"))
    world.settle()
    (code, job), (_, events), (_, rest), (_, bobs), (_, queue), (missing, _) = await _asked(
        world,
        "/files/jobs/a",
        "/files/jobs/a/events",
        f"/files/jobs/a/events?after={world.events[0].id}",
        "/files/jobs?user=bob&status=completed&limit=1",
        "/files/queue",
        "/files/jobs/z",
    )
    assert (code, missing) == (200, 404)
    assert {name: job[name] for name in ("job_id", "status", "progress", "file_name", "error", "partition")} == {
        "job_id": "a",
        "status": "completed",
        "progress": 100,
        "file_name": "x.mp3",
        "error": None,
        "partition": 0,
    }
    assert job["r2_key"].startswith("converted/1_") and job["size_bytes"] == 10
    assert job["submit"]["source"] == {"key": "uploads/1/a.webm"} and job["applied"] == len(world.log)
    assert events["events"][0]["type"] == "job_accepted"
    assert events["events"][-1]["type"] == "job_completed" and len(rest["events"]) < len(events["events"])
    assert [found["user"] for found in bobs["jobs"]] == ["bob"]
    (figures,) = queue["partitions"]
    assert (figures["open"], figures["running"], figures["to_sweep"], figures["totals"]["completed"]) == (0, 0, 0, 3)


async def test_what_another_owner_must_be_asked_and_what_is_no_question() -> None:
    world = World()
    away = next(name for name in "abcdefgh" if partition_of(name.encode(), 2) == 1)
    ((elsewhere, _),) = await _asked(world, f"/files/jobs/{away}", partitions=2)
    ((restoring, _),) = await _asked(world, "/files/jobs/a", ready=False)
    paths = ("/files/jobs/no%20id", "/files/jobs/a/events?after=x", "/files/jobs?status=done", "/files/jobs?limit=x")
    assert (elsewhere, restoring) == (421, 503)
    assert [code for code, _ in await _asked(world, *paths)] == [400] * 4


async def test_a_workers_stream_is_put_together(tmp_path: Path) -> None:
    settings = Settings(data_dir=tmp_path, partitions=2, files_concurrency=8, files_per_user=3, files_url_s=60)
    objects = bucket(settings)
    spec = composed(settings, objects)
    assert (spec.group, spec.source, spec.deadletter) == ("sluiceway-files", specs.FILES_JOBS, specs.FILES_DEADLETTER)
    assert {topic.name for topic in spec.topics} == {specs.FILES_JOBS, specs.FILES_PROGRESS, specs.FILES_DEADLETTER}
    fold: Any = spec.make_fold(1, 2)
    assert (fold.state.rules.partition, fold.state.rules.slots, fold.state.rules.per_user) == (1, 4, 3)
    said: list[Any] = []
    assert spec.make_outside is not None
    outside = spec.make_outside(Seat(1, 7, said.extend, lambda error: None), fold)
    assert not isinstance(files.decode(said[0].key, said[0].value, said[0].headers), Malformed)
    assert (said[0].topic, said[0].partition, fold.state.seat) == (specs.FILES_JOBS, 1, 7)
    outside.close()
    (folder,) = (tmp_path / "scratch").glob("converter-*")
    spec.close()
    assert not folder.exists(), "a worker that ends leaves no scratch"
    await objects.close()


@pytest.mark.parametrize(
    "wrong",
    [
        {"files_sweep_s": 100.0},
        {"files_url_s": 700_000},
        {"files_part_mb": 4},
        {"files_part_mb": 5, "converter_result_mb": 6_000},
        {"files_retries": -1},
    ],
)
def test_settings_that_cannot_be_held_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(SettingError):
        Settings(**wrong)
