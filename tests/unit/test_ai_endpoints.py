"""`/api/tasks` over real HTTP, with an owner, a topic and an archive that say what they are told to."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer
from httpx_sse import ServerSentEvent, aconnect_sse
from prometheus_client import CollectorRegistry

from streams.ai.model_port import TaskType
from streams.runtime.addresses import networks
from streams.web.ai.direct import DirectRules, DirectWork
from streams.web.ai.keeper import JournalLimits, Keeper
from streams.web.ai.submission import Asking
from streams.web.ai.tasks import Tasks
from streams.web.context import Readiness
from streams.web.gateway import make_gateway
from streams.web.idempotency import id_of_key
from streams.web.owner import ArchiveAway, Owners
from streams.web.publisher import HeadedRecord, Place, PublishUnavailable
from tests.unit.test_ai_journal import Echo, Plain
from tests.unit.test_gateway import KeptRecords, problem
from topics.ai import Cancel, Outcome, Submit, TaskRecord, decode

TASK = {"task_type": "question", "user": "ada", "language": "English", "question": "why?"}
KEY = {"Idempotency-Key": "k 1"}
ASKING = Asking(
    task_types=("question", "summary"), models=("small",), webhooks=True, webhook_networks=networks("127.0.0.1")
)


class World:
    """A worker that knows what it is told to, Kafka, and ClickHouse. With `reads` the worker reads what Kafka is given."""

    def __init__(self) -> None:
        self.records: list[TaskRecord] = []
        self.tasks: dict[str, dict[str, Any]] = {}
        self.archive: dict[str, dict[str, Any]] | None = {}
        self.reads = True
        self.status = 200
        self.trouble = ""
        self.url: str | None = None
        self.asked: list[str] = []
        self.journal: Keeper | None = None
        self.prompt = asyncio.Event()
        self.prompt.set()
        self.asks = 0

    @property
    def connected(self) -> bool:
        return not self.trouble

    async def append(self, records: Sequence[HeadedRecord]) -> Place:
        if self.trouble:
            raise PublishUnavailable(self.trouble)
        for key, value, headers in records:
            found = decode(key, value, list(headers))
            assert isinstance(found, (Submit, Cancel, Outcome)), found
            self.records.append(found)
            if isinstance(found, Outcome):
                assert found.submit is not None
                self.knows(found.submit, status=str(found.status), result=found.result)
                continue
            if self.reads and isinstance(found, Submit):
                self.knows(found)
            elif self.reads and self.tasks[found.task_id]["status"] == "pending":
                self.tasks[found.task_id]["status"] = "cancelled"
        return Place(0, len(self.records) - 1)

    def knows(self, submit: Submit, **more: Any) -> None:
        place = {"task_id": submit.task_id, "status": "pending", "accepted_ms": len(self.tasks)}
        self.tasks[submit.task_id] = {**place, "submit": msgspec.to_builtins(submit), **more}

    async def task(self, task_id: str) -> dict[str, Any] | None:
        if self.archive is None:
            raise ArchiveAway("ClickHouse is away")
        return self.archive.get(task_id)

    async def one(self, request: web.Request) -> web.Response:
        self.asks += 1
        await self.prompt.wait()
        known = self.tasks.get(request.match_info["task_id"])
        told = {"partition": 0, "applied": len(self.records) if self.reads else 0}
        status = self.status if known or self.status != 200 else 404
        return web.json_response({**(known or {"status": "unknown"}), **told}, status=status)

    async def list(self, request: web.Request) -> web.Response:
        self.asked.append(request.query_string)
        limit = int(request.query["limit"])
        shown = [{n: v for n, v in task.items() if n != "submit"} for task in reversed(self.tasks.values())]
        return web.json_response({"tasks": shown[:limit], "partitions": [0]}, status=self.status)


Client = TestClient[web.Request, web.Application]
Start = Callable[[], Awaitable[Client]]


@pytest.fixture
async def world() -> AsyncIterator[World]:
    made = World()
    app = web.Application()
    app.router.add_get("/ai/tasks", made.list)
    app.router.add_get("/ai/tasks/{task_id}", made.one)
    async with TestServer(app) as server:
        made.url = str(server.make_url("")).rstrip("/")
        yield made


@pytest.fixture
async def client(world: World) -> AsyncIterator[Client]:
    async def partitions() -> int:
        return 1

    async def readiness() -> Readiness:
        return Readiness(True)

    owners = Owners("ai", lambda partition: world.url, partitions, timeout_s=1.0)
    tasks = Tasks(
        world, owners, lambda partition: world.url, world, ASKING, world.journal, within_s=0.3, key_within_s=0.3
    )
    app = make_gateway(
        publisher=KeptRecords(), readiness=readiness, registry=CollectorRegistry(), version="1", tasks=tasks
    )
    async with TestClient(TestServer(app)) as made:
        yield made
    await owners.close()


async def test_a_task_is_recorded_and_told_of(world: World, client: Client) -> None:
    response = await client.post("/api/tasks", json=TASK)
    told = await response.json()
    assert response.status == 202 and told["status"] == "pending"
    assert response.headers["Location"] == f"/api/tasks/{told['task_id']}"
    (submit,) = world.records
    assert isinstance(submit, Submit) and (submit.task_id, submit.question) == (told["task_id"], "why?")
    state = await (await client.get(f"/api/tasks/{told['task_id']}")).json()
    assert state["status"] == "pending" and not {"submit", "applied", "partition"} & state.keys()
    other = await (await client.post("/api/tasks", json=TASK)).json()
    assert other["task_id"] != told["task_id"], "without a key each is a task of its own"


async def test_a_key_names_one_task(world: World, client: Client) -> None:
    first = await (await client.post("/api/tasks", json=TASK, headers=KEY)).json()
    assert first["task_id"] == id_of_key("ada", "k 1")
    world.tasks[first["task_id"]]["status"] = "completed"
    again = await client.post("/api/tasks", json=TASK, headers=KEY)
    assert (again.status, await again.json()) == (202, {"task_id": first["task_id"], "status": "completed"})
    other = await client.post("/api/tasks", json={**TASK, "question": "how?"}, headers=KEY)
    assert other.status == 422 and "idempotency" in (await problem(other))["type"]
    users = await client.post("/api/tasks", json={**TASK, "user": "bob"}, headers=KEY)
    assert users.status == 202, "keys are each user's own"
    assert len(world.records) == 2


@pytest.mark.parametrize("reads", [True, False])
async def test_another_body_is_refused_where_this_gateway_knows_the_first(
    world: World, client: Client, reads: bool
) -> None:
    world.reads = reads
    await client.post("/api/tasks", json=TASK, headers=KEY)
    world.status = 503
    assert (await client.post("/api/tasks", json={**TASK, "question": "how?"}, headers=KEY)).status == 422
    assert (await client.post("/api/tasks", json=TASK, headers=KEY)).status == 202


async def test_a_key_that_came_through_another_gateway(world: World, client: Client) -> None:
    world.knows(Submit(task_id=id_of_key("ada", "k 1"), submitted_ms=1, **TASK))
    assert (await client.post("/api/tasks", json=TASK, headers=KEY)).status == 202
    assert (await client.post("/api/tasks", json={**TASK, "model": "small"}, headers=KEY)).status == 422
    assert world.records == []


async def test_a_busy_worker_is_not_waited_for(world: World, client: Client) -> None:
    world.prompt.clear()
    world.reads = False
    for name in ("a", "b", "c"):
        assert (await client.post("/api/tasks", json=TASK, headers={"Idempotency-Key": name})).status == 202
    assert (len(world.records), world.asks) == (3, 1), "one that has not answered is asked nothing more"
    other = await client.post("/api/tasks", json={**TASK, "question": "how?"}, headers={"Idempotency-Key": "b"})
    assert other.status == 422, "this gateway knows the first body"
    again = await client.post("/api/tasks", json=TASK, headers={"Idempotency-Key": "b"})
    assert (again.status, (await again.json())["status"], len(world.records)) == (202, "pending", 3)
    world.prompt.set()
    world.reads = True
    world.knows(Submit(task_id=id_of_key("ada", "d"), submitted_ms=1, **{**TASK, "question": "how?"}))
    async with asyncio.timeout(5):
        while (await client.post("/api/tasks", json=TASK, headers={"Idempotency-Key": "d"})).status != 422:
            assert len(world.records) <= 4, "once it has answered it is asked again"


async def test_the_first_record_wins_over_what_a_gateway_recorded_unasked(world: World, client: Client) -> None:
    first, second = TASK, {**TASK, "question": "how?"}
    world.prompt.clear()
    world.knows(Submit(task_id=id_of_key("ada", "k 1"), submitted_ms=1, **first))
    world.reads = False
    assert (await client.post("/api/tasks", json=second, headers=KEY)).status == 202, "its fold will refuse it"
    world.prompt.set()
    async with asyncio.timeout(5):
        while world.asks == 1:
            await client.post("/api/tasks", json=TASK, headers={"Idempotency-Key": "other"})
    world.prompt.clear()
    assert (await client.post("/api/tasks", json=first, headers=KEY)).status == 202, "the late answer is heeded"
    world.prompt.set()


async def test_a_task_is_known_before_its_worker_has_read_of_it(world: World, client: Client) -> None:
    world.reads = False
    task_id = (await (await client.post("/api/tasks", json=TASK)).json())["task_id"]
    state = await (await client.get(f"/api/tasks/{task_id}")).json()
    assert (state["status"], state["result"], state["attempts"]) == ("pending", None, 0)
    response = await client.delete(f"/api/tasks/{task_id}")
    assert response.status == 202 and isinstance(world.records[-1], Cancel)


async def test_what_the_worker_has_forgotten_is_in_clickhouse(world: World, client: Client) -> None:
    world.archive = {"old": {"task_id": "old", "status": "completed", "result": "42"}}
    assert (await (await client.get("/api/tasks/old")).json())["result"] == "42"
    assert (await client.get("/api/tasks/never")).status == 404
    assert (await client.delete("/api/tasks/never")).status == 404
    assert (await client.delete("/api/tasks/old")).status == 409
    world.archive = None
    response = await client.get("/api/tasks/old")
    assert response.status == 503 and "Retry-After" in response.headers


async def test_a_cancel_is_told_once_its_worker_has_read_it(world: World, client: Client) -> None:
    task_id = (await (await client.post("/api/tasks", json=TASK)).json())["task_id"]
    for _ in range(2):
        response = await client.delete(f"/api/tasks/{task_id}")
        assert (response.status, (await response.json())["status"]) == (200, "cancelled")
    assert sum(isinstance(record, Cancel) for record in world.records) == 1
    world.tasks[task_id]["status"] = "completed"
    assert (await client.delete(f"/api/tasks/{task_id}")).status == 409


async def test_pages_follow_each_other(world: World, client: Client) -> None:
    ids = [(await (await client.post("/api/tasks", json=TASK)).json())["task_id"] for _ in range(3)]
    page = await (await client.get("/api/tasks?user=ada&status=pending&limit=2")).json()
    assert [task["task_id"] for task in page["tasks"]] == ids[:0:-1]
    assert page["next_cursor"] == f"1-{ids[1]}"
    await client.get(f"/api/tasks?cursor={page['next_cursor']}")
    assert world.asked == ["user=ada&status=pending&limit=2", f"before=1-{ids[1]}&limit=50"]
    page = await (await client.get("/api/tasks")).json()
    assert len(page["tasks"]) == 3 and page["next_cursor"] is None


@pytest.mark.parametrize("query", ["status=done", "cursor=x", "cursor=1-", "limit=0", "limit=201", "limit=x", "page=2"])
async def test_lists_that_cannot_be(client: Client, query: str) -> None:
    response = await client.get(f"/api/tasks?{query}")
    assert response.status == 400
    await problem(response)


async def test_nothing_is_made_up_while_a_part_is_away(world: World, client: Client) -> None:
    world.status = 503
    for path in ("/api/tasks", "/api/tasks/t"):
        response = await client.get(path)
        assert response.status == 503 and "Retry-After" in response.headers
    world.trouble = "Kafka is away"
    response = await client.post("/api/tasks", json=TASK)
    assert response.status == 503 and "kafka" in (await problem(response))["type"]


class Prompts(Plain):
    """Those of the tasks here."""

    @property
    def task_types(self) -> Mapping[str, TaskType]:
        return {"question": TaskType("question@1", "small")}


@pytest.fixture
async def journal(world: World, tmp_path: Path) -> AsyncIterator[Echo]:
    """Has the gateway a journal; the model that it asks itself."""
    model = Echo()
    rules = DirectRules(models={"small": (4, 0)}, split=lambda text: [text], pause_s=lambda failures: 0.0)
    limits = JournalLimits(patience_s=0.0, pause_s=0.01)
    world.journal = Keeper(tmp_path, world, DirectWork(model, Prompts(), rules), limits)
    await world.journal.start()
    yield model
    await world.journal.close()


async def until(client: Client, task_id: str, true: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
    """The task's state, once it is so."""
    async with asyncio.timeout(10):
        while not true(state := await (await client.get(f"/api/tasks/{task_id}")).json()):  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    return state


async def test_a_task_is_done_here_while_kafka_is_away(world: World, journal: Echo, client: Client) -> None:
    world.trouble, world.url = "Kafka is away", None
    journal.gate.clear()
    first = await client.post("/api/tasks", json=TASK, headers=KEY)
    task_id = (await first.json())["task_id"]
    assert first.status == 202 and task_id == id_of_key("ada", "k 1")
    assert (await client.post("/api/tasks", json=TASK, headers=KEY)).status == 202
    assert (await client.post("/api/tasks", json={**TASK, "question": "how?"}, headers=KEY)).status == 422
    await until(client, task_id, lambda state: state["status"] == "processing")
    following = await client.get(f"/api/tasks/{task_id}/events")
    journal.gate.set()
    told = (await following.read()).decode()
    assert told.count("event: token") and told.count("event: result") == 1 and "id: journal-1-0" in told
    done = await until(client, task_id, lambda state: state["status"] == "completed")
    assert done["result"] == "so: why?" and done["error"] is None and len(journal.calls) == 1
    assert done["task_id"] in told and world.records == []
    assert (await client.delete(f"/api/tasks/{task_id}")).status == 409

    world.trouble = ""
    async with asyncio.timeout(10):
        while not world.records:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    (outcome,) = world.records
    assert isinstance(outcome, Outcome) and outcome.submit is not None and outcome.result == "so: why?"


async def test_an_sse_client_follows_and_resumes(world: World, journal: Echo, client: Client) -> None:
    world.trouble = "Kafka is away"
    task_id = (await (await client.post("/api/tasks", json=TASK)).json())["task_id"]
    url = str(client.make_url(f"/api/tasks/{task_id}/events"))

    async def events(after: str = "") -> list[ServerSentEvent]:
        headers = {"Last-Event-ID": after} if after else {}
        async with httpx.AsyncClient() as http, aconnect_sse(http, "GET", url, headers=headers) as source:
            return [event async for event in source.aiter_sse()]

    told = await events()
    assert [event.event for event in told[:2]] == ["status", "status"] and told[-1].event == "result"
    assert len({event.id for event in told}) == len(told) and told[0].retry == 1_000
    answer = "".join(event.json()["text"] for event in told if event.event == "token")
    assert answer == told[-1].json()["result"] == "so: why?"
    rest = await events(told[1].id)
    assert [(event.id, event.data) for event in rest] == [(event.id, event.data) for event in told[2:]]


async def test_a_task_in_the_journal_is_listed_and_cancelled(world: World, journal: Echo, client: Client) -> None:
    world.trouble = "Kafka is away"
    journal.gate.clear()
    task_id = (await (await client.post("/api/tasks", json=TASK)).json())["task_id"]
    page = await (await client.get("/api/tasks?user=ada&limit=1")).json()
    assert [task["task_id"] for task in page["tasks"]] == [task_id] and page["next_cursor"]
    page = await (await client.get(f"/api/tasks?cursor={page['next_cursor']}")).json()
    assert page == {"tasks": [], "next_cursor": None}
    response = await client.delete(f"/api/tasks/{task_id}")
    assert (response.status, (await response.json())["status"]) == (200, "cancelled")
    stream = await client.get(f"/api/tasks/{task_id}/events")
    assert '"status":"cancelled"' in (await stream.read()).decode()
    assert (await (await client.get("/api/async-status")).json())["details"]["fallbackSupport"] is True


async def test_status_pages_say_what_is_away(world: World, client: Client) -> None:
    world.url = None
    for name in ("queue-status", "ai-status", "async-status"):
        told = await (await client.get(f"/api/{name}")).json()
        assert told["status"] == "unavailable" and "partition 0" in told["detail"]
    assert told["details"]["fallbackSupport"] is False


BAD: list[tuple[dict[str, Any], int]] = [
    ({"question": ""}, 400),
    ({"question": " \n"}, 400),
    ({"question": "q" * (1 << 20)}, 413),
    ({"question": "q" * 300_000}, 413),
    ({"question": "\x01" * 120_000}, 413),
    ({"question": 7}, 400),
    ({"question": None}, 400),
    ({"question": "\ud800"}, 400),
    ({"user": ""}, 400),
    ({"user": "a\nb"}, 400),
    ({"user": "a" * 129}, 400),
    ({"user": "\udc80"}, 400),
    ({"task_type": "horoscope"}, 400),
    ({"task_type": "../question"}, 400),
    ({"language": "<b>"}, 400),
    ({"model": "gpt-99"}, 400),
    ({"task_id": "mine"}, 400),
    ({"priority": 1}, 400),
    ({"webhook_url": "ftp://example.com/"}, 400),
    ({"webhook_url": "http://10.0.0.1/"}, 400),
    ({"webhook_url": "http://169.254.169.254/latest"}, 400),
    ({"webhook_url": "http://[fec0::1]/"}, 400),
    ({"webhook_url": "http://[::7f00:1]/"}, 400),
    ({"webhook_url": "http://[64:ff9b:1::7f00:1]/"}, 400),
    ({"webhook_url": "http://u:p@127.0.0.1/"}, 400),
]


@pytest.mark.parametrize(("change", "status"), BAD, ids=[str(change)[:40] for change, _ in BAD])
async def test_bad_tasks_are_told_what_is_wrong(
    world: World, client: Client, change: dict[str, Any], status: int
) -> None:
    for headers in ({}, KEY):
        body = json.dumps({**TASK, **change})
        response = await client.post("/api/tasks", data=body, headers={**headers, "Content-Type": "application/json"})
        assert response.status == status
        told = await problem(response)
        assert len(told["detail"]) < 1_000
    assert world.records == []


@pytest.mark.parametrize("body", [b"", b"[]", b"7", b"{", b'{"question": "\xff"}', b"[" * 100_000])
async def test_bodies_that_are_no_task(world: World, client: Client, body: bytes) -> None:
    response = await client.post("/api/tasks", data=body, headers={"Content-Type": "application/json"})
    assert response.status == 400
    await problem(response)


async def test_odd_headers_and_ids(world: World, client: Client) -> None:
    assert (await client.post("/api/tasks", data=b"question=why")).status == 415
    for key in ("", " ", "é", "k" * 256):
        assert (await client.post("/api/tasks", json=TASK, headers={"Idempotency-Key": key})).status == 400, key
    for task_id in ("a%20b", "%2e%2e", "a%2Fb", "a" * 129, "%FF", "a%0Ab"):
        for method in ("GET", "DELETE"):
            response = await client.request(method, f"/api/tasks/{task_id}")
            assert response.status in (400, 404), task_id
            await problem(response)
    assert world.records == []


async def test_a_webhook_to_an_allowed_network_is_taken(world: World, client: Client) -> None:
    response = await client.post("/api/tasks", json={**TASK, "webhook_url": "http://127.0.0.1:9/done"})
    assert response.status == 202
