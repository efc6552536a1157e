"""Conversions over real HTTP, with a worker, a topic and an archive that say what they are told to."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import msgspec
import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer

from streams.web.files.jobs import Jobs
from streams.web.files.parts import UploadLimits
from tests.filesweb import DONE, KEY, Store, Worker, file_gateway, jobs_of
from tests.unit.test_gateway import problem
from topics.files import Cancel, Stage, Submit
from topics.files_events import JobAccepted, JobCompleted, JobEvent, JobFailed, JobProgressed

JOB = {"source": {"key": KEY}, "format": "mp3"}


def at(number: int) -> dict[str, Any]:
    """What every event has."""
    place = {"source_partition": 0, "epoch": 1, "source_offset": number, "number": 0}
    return {"job_id": "j", "user": "", "at_ms": 1, "progress": number * 10, **place}


COMPLETED = JobCompleted(r2_key="converted/1_a_x.mp3", size_bytes=7, checksum="0" * 32, duration_ms=1, **at(10))


@pytest.fixture
def worker() -> Worker:
    return Worker()


@pytest.fixture
async def jobs(worker: Worker) -> AsyncIterator[Jobs]:
    async with jobs_of(worker) as made:
        yield made


@pytest.fixture
async def client(jobs: Jobs) -> AsyncIterator[TestClient[web.Request, web.Application]]:
    async with TestClient(TestServer(file_gateway(Store(), jobs, UploadLimits()))) as made:
        yield made


async def test_a_job_is_recorded_and_known_before_its_worker_has_read_it(client: Any, worker: Worker) -> None:
    answer = await client.post("/api/convert", json={**JOB, "quality": "low", "options": {"trim": {"start_ms": 5}}})
    told = await answer.json()
    assert (answer.status, told["status"]) == (202, "accepted")
    (submit,) = worker.records
    assert isinstance(submit, Submit) and (submit.job_id, submit.quality) == (told["job_id"], "low")
    assert submit.options == {"trim": {"start_ms": 5}}
    state = await (await client.get(f"/api/convert/{told['job_id']}")).json()
    assert (state["status"], state["progress"], state["download_url"]) == ("accepted", 0, None)
    worker.applied = 1
    assert (await client.get(f"/api/convert/{told['job_id']}")).status == 404, (
        "its worker has read it, and knows it not"
    )


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"format": "exe"}, "none of mp3"),
        ({"quality": "best"}, "low, medium, high"),
        ({"options": {"scale": {"width": 100}}}, "no picture"),
        ({"source": {}}, "key or a url"),
        ({"source": {"url": "file:///etc/passwd"}}, "source.url"),
        ({"surce": 1}, "surce"),
        ({"user": "a\u0000b"}, "unprintable"),
    ],
)
async def test_a_job_that_cannot_be_is_a_problem(client: Any, worker: Worker, change: Any, said: str) -> None:
    answer = await client.post("/api/convert", json={**JOB, **change})
    assert (answer.status, said in (await problem(answer))["detail"]) == (400, True)
    assert worker.records == []


async def test_a_job_under_a_key_is_one_job(client: Any, worker: Worker) -> None:
    headers = {"Idempotency-Key": "mine"}
    first = await (await client.post("/api/convert", json=JOB, headers=headers)).json()
    again = await (await client.post("/api/convert", json=JOB, headers=headers)).json()
    assert first == again and len(worker.records) == 1
    other = await client.post("/api/convert", json={**JOB, "format": "wav"}, headers=headers)
    assert (other.status, (await problem(other))["type"]) == (422, "urn:sluiceway:problem:idempotency-conflict")
    assert (await client.post("/api/convert", json=JOB, headers={"Idempotency-Key": "\u00e4"})).status == 400


async def test_a_job_under_a_key_stands_as_its_owner_says(client: Any, worker: Worker) -> None:
    headers = {"Idempotency-Key": "mine"}
    first = await (await client.post("/api/convert", json=JOB, headers=headers)).json()
    assert first["status"] == "accepted"
    (submit,) = worker.records
    told = {"job_id": first["job_id"], "submit": msgspec.to_builtins(submit), "applied": 1}
    for status in ("converting", "completed"):
        worker.states[first["job_id"]] = {**told, "status": status}
        again = await (await client.post("/api/convert", json=JOB, headers=headers)).json()
        assert again == {**first, "status": status} and len(worker.records) == 1


async def test_while_the_owner_is_silent_the_gateway_answers_for_what_it_took(client: Any, worker: Worker) -> None:
    headers = {"Idempotency-Key": "mine"}
    first = await (await client.post("/api/convert", json=JOB, headers=headers)).json()
    worker.speaks.clear()
    try:
        async with asyncio.timeout(10):
            again = await (await client.post("/api/convert", json=JOB, headers=headers)).json()
            other = await client.post("/api/convert", json={**JOB, "format": "wav"}, headers=headers)
    finally:
        worker.speaks.set()
    assert again == first and other.status == 422 and len(worker.records) == 1


async def test_a_result_has_a_link_and_what_is_over_is_not_cancelled(client: Any, worker: Worker) -> None:
    worker.states["j"] = DONE
    for answer in (await client.get("/api/convert/j"), await client.delete("/api/convert/j")):
        state = await answer.json()
        assert (answer.status, state["download_url"]) == (200, "http://store/converted/1_a_x.mp3?as=x.mp3&for=86400")
        assert "applied" not in state and state["download_expires_ms"] > 0
    worker.states["j"] = {**DONE, "status": "converting", "r2_key": None}
    assert (await client.delete("/api/convert/j")).status == 202
    assert worker.records == [Cancel("j")]
    for path, status in (("/api/convert/other", 404), ("/api/convert/no%20id", 400), ("/api/convert/x/events", 404)):
        await problem(answer := await client.get(path))
        assert answer.status == status


@pytest.mark.parametrize("status", ["completed", "failed", "cancelled"])
async def test_what_the_worker_has_forgotten_is_in_clickhouse(client: Any, worker: Worker, status: str) -> None:
    result = {"r2_key": "converted/1_a_x.mp3" if status == "completed" else None}
    worker.kept = {"old": {**DONE, **result, "job_id": "old", "status": status}}
    for answer in (await client.get("/api/convert/old"), await client.delete("/api/convert/old")):
        state = await answer.json()
        assert (answer.status, state["status"], "archived" in state) == (200, status, False)
        assert (state["download_url"] is not None) is (status == "completed")
    assert worker.records == []
    async with asyncio.timeout(2), client.get("/api/convert/old/events") as answer:
        told = await answer.content.read()
    name = {"completed": b"result", "failed": b"error", "cancelled": b"status"}[status]
    assert told.startswith(b"retry: 1000\nid: archived\nevent: " + name) and told.count(b"id: ") == 1
    last = await client.get("/api/convert/old/events", headers={"Last-Event-ID": "archived"})
    assert last.status == 204
    worker.kept = None
    for path in ("/api/convert/old", "/api/convert/old/events"):
        answer = await client.get(path)
        assert (answer.status, answer.headers["Retry-After"]) == (503, "2")


async def test_who_follows_a_job_is_let_go_when_its_worker_forgets_it(client: Any, worker: Worker, jobs: Jobs) -> None:
    worker.states["j"] = {**DONE, "status": "converting", "r2_key": None}
    async with asyncio.timeout(5), client.get("/api/convert/j/events") as answer:
        assert await answer.content.readline() == b":\n"
        del worker.states["j"]
        jobs.note(b"j", None)
        assert b"event" not in await answer.content.read()


async def test_kafka_away_promises_nothing(client: Any, worker: Worker) -> None:
    worker.trouble = "away"
    assert (await client.post("/api/convert", json=JOB)).status == 503


async def test_a_job_is_followed_to_its_end_and_gone_on_with(client: Any, worker: Worker, jobs: Jobs) -> None:
    worker.states["j"] = {**DONE, "status": "converting", "r2_key": None}
    accepted = JobAccepted(format="mp3", quality="low", submitted_ms=1, **at(0))
    moved = JobProgressed(attempt=1, stage=Stage.CONVERTING, percent=20, **at(5))
    worker.events["j"] = [accepted, moved]
    async with client.get("/api/convert/j/events") as answer:
        assert answer.content_type == "text/event-stream"
        begun = await answer.content.readuntil(b'"percent":20}\n\n')
        assert b"id: 1-0-0\nevent: status\n" in begun and b"id: 1-5-0\nevent: status\n" in begun
        worker.states["j"] = DONE
        worker.events["j"].append(COMPLETED)
        jobs.note(b"j", None)
        async with asyncio.timeout(2):
            ended = await answer.content.read()
    assert ended.startswith(b"id: 1-10-0\nevent: result\n") and b"http://store/converted/" in ended
    async with client.get("/api/convert/j/events", headers={"Last-Event-ID": "1-5-0"}) as answer:
        again = await answer.content.read()
    assert again.startswith(b"retry: 1000\nid: 1-10-0\n") and again.count(b"id: ") == 1
    async with asyncio.timeout(2):
        last = await client.get("/api/convert/j/events", headers={"Last-Event-ID": "1-10-0"})
    assert last.status == 204
    worker.states["j"] = {**DONE, "status": "failed", "error": {"type": "not_media", "message": "no"}, "r2_key": None}
    worker.events["j"] = [JobFailed(error_type="not_media", error="no", **at(10))]
    async with client.get("/api/convert/j/events") as answer:
        told = await answer.content.read()
    assert b"event: error\n" in told and b'"message":"no"' in told


async def test_many_who_follow_a_job_ask_its_worker_as_one(worker: Worker, jobs: Jobs) -> None:
    worker.states["j"] = {**DONE, "status": "converting", "r2_key": None}
    worker.events["j"] = [JobAccepted(format="mp3", quality="low", submitted_ms=1, **at(0))]
    told: list[list[JobEvent]] = [[] for _ in range(200)]

    async def follow(into: list[JobEvent]) -> None:
        async for event in jobs.follow("j", None):
            into += [event] if event is not None else []

    followers = [asyncio.create_task(follow(into)) for into in told]
    async with asyncio.timeout(5):
        for number in range(1, 6):
            while not all(len(into) == number for into in told):  # noqa: ASYNC110
                await asyncio.sleep(0.01)
            moved = JobProgressed(attempt=1, stage=Stage.CONVERTING, percent=number, **at(number))
            worker.events["j"].append(moved if number < 5 else COMPLETED)
            jobs.note(b"j", None)
        await asyncio.gather(*followers)
    assert all(into == worker.events["j"] for into in told)
    assert worker.asked_events == 6
