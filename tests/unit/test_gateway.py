"""The gateway over real HTTP, with a publisher that keeps what it is given or says that Kafka is away."""

from __future__ import annotations

import asyncio
import gzip
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Any

import jsonschema
import pytest
from aiohttp import ClientResponse, web
from aiohttp.test_utils import TestClient, TestServer
from prometheus_client import CollectorRegistry
from structlog.testing import capture_logs

from streams.web.context import EventLimits, Readiness
from streams.web.gateway import make_gateway
from streams.web.publisher import PublishUnavailable, Record

Client = TestClient[web.Request, web.Application]
Start = Callable[..., Awaitable[Client]]

EVENT = {"event_id": "e1", "timestamp_ms": 1, "method": "GET", "path": "/", "status": 200, "client_ip": "1.2.3.4"}


class KeptRecords:
    """Keeps records; with `trouble` set it is a Kafka that is away, with `gate` one that is slow."""

    def __init__(self) -> None:
        self.records: list[Record] = []
        self.trouble = ""
        self.gate: asyncio.Event | None = None
        self.reached = asyncio.Event()

    async def publish(self, records: Sequence[Record]) -> None:
        self.reached.set()
        if self.gate is not None:
            await self.gate.wait()
        if self.trouble:
            raise PublishUnavailable(self.trouble)
        self.records += records

    async def reachable(self) -> bool:
        return not self.trouble


@pytest.fixture
def kafka() -> KeptRecords:
    return KeptRecords()


@pytest.fixture
async def start(kafka: KeptRecords) -> AsyncIterator[Start]:
    clients: list[Client] = []

    async def readiness() -> Readiness:
        up = await kafka.reachable()
        return Readiness(up, {"kafka": "reachable" if up else "unreachable"})

    async def started(**options: Any) -> Client:
        app = make_gateway(publisher=kafka, readiness=readiness, registry=CollectorRegistry(), version="1", **options)
        client = TestClient(TestServer(app))
        await client.start_server()
        clients.append(client)
        return client

    yield started
    for client in clients:
        await client.close()


async def problem(response: ClientResponse) -> dict[str, Any]:
    assert response.content_type == "application/problem+json"
    body: dict[str, Any] = await response.json(content_type=None)
    assert set(body) == {"type", "title", "status", "detail"}
    assert body["status"] == response.status
    return body


async def test_an_array_is_accepted_and_the_bad_ones_listed(start: Start, kafka: KeptRecords) -> None:
    client = await start()
    bad = [{**EVENT, "status": "200"}, 7, {**EVENT, "event_id": ""}, {**EVENT, "client_ip": "x"}]
    response = await client.post("/api/events", json=[EVENT, *bad, {**EVENT, "event_id": "e2", "new_field": [1]}])
    assert response.status == 202
    body = await response.json()
    assert body["accepted"] == 2
    assert [r["index"] for r in body["rejected"]] == [1, 2, 3, 4]
    assert all(r["error"] for r in body["rejected"])
    assert [key for key, _ in kafka.records] == [b"e1", b"e2"]
    assert json.loads(kafka.records[1][1])["new_field"] == [1]


async def test_ndjson_gzip_and_pretty_printed_arrays(start: Start, kafka: KeptRecords) -> None:
    client = await start()
    lines = json.dumps(EVENT) + "\r\n\n" + "oops\n" + json.dumps(EVENT)
    headers = {"Content-Type": "application/x-ndjson", "Content-Encoding": "gzip"}
    response = await client.post("/api/events", data=gzip.compress(lines.encode()), headers=headers)
    assert response.status == 202
    body = await response.json()
    assert (body["accepted"], [r["index"] for r in body["rejected"]]) == (2, [1])
    response = await client.post(
        "/api/events", data=json.dumps([EVENT], indent=2), headers={"Content-Type": "application/json; charset=utf-8"}
    )
    assert response.status == 202
    assert not any(b"\n" in value for _, value in kafka.records)
    assert json.loads(kafka.records[-1][1]) == EVENT


@pytest.mark.parametrize(
    ("status", "body", "headers"),
    [
        (400, b"{", {}),
        (400, b'{"a":1}', {}),
        (400, b"[1,", {}),
        (400, b"\xff\xfe", {}),
        (400, b"[" * 100_000, {}),
        (400, b"not gzip", {"Content-Encoding": "gzip"}),
        (400, gzip.compress(b"[]" * 999)[:20], {"Content-Encoding": "gzip"}),
        (415, b"[]", {"Content-Encoding": "compress"}),
        (415, b"[]", {"Content-Encoding": "gzip, gzip"}),
        (415, b"[]", {"Content-Type": "application/x-www-form-urlencoded"}),
        (415, b"[]", {"Content-Type": ""}),
        (413, b"[" + b" " * 20_000 + b"]", {}),
        (413, gzip.compress(b"[" + b" " * 2_000_000 + b"]"), {"Content-Encoding": "gzip"}),
        (413, b"[1,2,3,4]", {}),
    ],
)
async def test_a_body_that_cannot_be_taken_is_a_problem(
    start: Start, kafka: KeptRecords, status: int, body: bytes, headers: dict[str, str]
) -> None:
    client = await start(event_limits=EventLimits(body_bytes_max=10_000, events_max=3))
    if len(body) > 50_000:
        client = await start(event_limits=EventLimits(events_max=3))
    response = await client.post("/api/events", data=body, headers={"Content-Type": "application/json", **headers})
    assert response.status == status, await response.text()
    await problem(response)
    assert kafka.records == []


async def test_an_event_over_the_record_limit_is_rejected_alone(start: Start, kafka: KeptRecords) -> None:
    client = await start(event_limits=EventLimits(event_bytes_max=1_000))
    response = await client.post("/api/events", json=[{**EVENT, "extra": "x" * 1_000}, EVENT])
    assert (await response.json())["rejected"][0]["index"] == 0
    assert len(kafka.records) == 1


async def test_kafka_away_promises_nothing(start: Start, kafka: KeptRecords) -> None:
    client = await start()
    kafka.trouble = "Kafka cannot be reached"
    response = await client.post("/api/events", json=[EVENT])
    assert response.status == 503
    assert int(response.headers["Retry-After"]) > 0
    body = await problem(response)
    assert body["type"] == "urn:sluiceway:problem:kafka-unavailable"
    assert "safe" in body["detail"]
    assert (await client.get("/api/ready")).status == 503
    assert (await client.get("/api/health")).status == 200
    kafka.trouble = ""
    assert (await client.get("/api/ready")).status == 200
    assert (await client.post("/api/events", json=[EVENT])).status == 202


async def test_404_405_and_a_bug_are_problems(start: Start, kafka: KeptRecords) -> None:
    client = await start()
    assert (await problem(await client.get("/nothing")))["status"] == 404
    wrong = await client.delete("/api/events")
    assert (await problem(wrong))["status"] == 405
    assert wrong.headers["Allow"] == "POST"

    async def broken(records: Sequence[Record]) -> None:
        raise RuntimeError("secret words")

    kafka.publish = broken  # type: ignore[method-assign]
    with capture_logs() as logs:
        body = await problem(await client.post("/api/events", json=[EVENT]))
    assert body["status"] == 500
    assert "secret" not in json.dumps(body)
    assert any(entry["event"] == "request_failed" for entry in logs)


async def test_the_api_key_is_required_where_one_is_set(start: Start, kafka: KeptRecords) -> None:
    client = await start(api_key="s3cret")
    attempts: list[dict[str, str]] = [
        {},
        {"Authorization": "Bearer wrong"},
        {"Authorization": "s3cret"},
        {"Authorization": "Bearer é"},
    ]
    for headers in attempts:
        for path in ("/api/events", "/metrics", "/openapi.json", "/nothing"):
            response = await client.post(path, json=[EVENT], headers=headers)
            assert response.status == 401
            assert response.headers["WWW-Authenticate"] == "Bearer"
            await problem(response)
    assert kafka.records == []
    for path in ("/api/health", "/api/ready"):
        assert (await client.get(path)).status == 200
    key = {"Authorization": "Bearer s3cret"}
    assert (await client.post("/api/events", json=[EVENT], headers=key)).status == 202
    assert (await client.get("/metrics", headers=key)).status == 200


async def test_the_log_tells_requests_without_secrets(start: Start) -> None:
    client = await start(api_key="s3cret")
    with capture_logs() as logs:
        await client.get("/openapi.json?token=hidden", headers={"Authorization": "Bearer s3cret"})
    (entry,) = [e for e in logs if e["event"] == "request"]
    assert (entry["method"], entry["path"], entry["status"]) == ("GET", "/openapi.json", 200)
    assert "s3cret" not in repr(logs)
    assert "hidden" not in repr(logs)


async def test_figures_count_events_and_requests(start: Start) -> None:
    client = await start()
    await client.post("/api/events", json=[EVENT, EVENT, 1])
    await client.request("PROPFIND", "/wp-admin")
    text = await (await client.get("/metrics")).text()
    assert 'sluiceway_gateway_events_total{outcome="accepted"} 2.0' in text
    assert 'sluiceway_gateway_events_total{outcome="rejected"} 1.0' in text
    assert 'sluiceway_gateway_requests_total{method="other",route="unknown",status="404"} 1.0' in text


async def test_requests_in_flight_finish_at_shutdown(kafka: KeptRecords) -> None:
    async def ready() -> Readiness:
        return Readiness(True)

    kafka.gate = asyncio.Event()
    app = make_gateway(publisher=kafka, readiness=ready, registry=CollectorRegistry(), version="1")
    server = TestServer(app)
    async with TestClient(server) as client:
        request = asyncio.create_task(client.post("/api/events", json=[EVENT]))
        async with asyncio.timeout(5):
            await kafka.reached.wait()
        closing = asyncio.create_task(server.close())
        kafka.gate.set()
        async with asyncio.timeout(5):
            assert (await request).status == 202
            await closing


async def test_every_route_is_in_a_sound_document(start: Start) -> None:
    client = await start(api_key="k")
    document = await (await client.get("/openapi.json", headers={"Authorization": "Bearer k"})).json()
    routes = {
        (route.method.lower(), route.resource.canonical)
        for route in client.app.router.routes()
        if route.resource is not None
    }
    written = {(method, path) for path, item in document["paths"].items() for method in item}
    assert routes == written
    operations = [operation for item in document["paths"].values() for operation in item.values()]
    assert len({operation["operationId"] for operation in operations}) == len(operations)
    assert document["openapi"].startswith("3.1.")
    assert {"title", "version"} <= set(document["info"])
    for operation in operations:
        assert operation["summary"]
        assert operation["description"]
        assert all(int(code) < 600 and r["description"] for code, r in operation["responses"].items())
        assert ("401" in operation["responses"]) == (operation.get("security") != [])
    for schema in schemas_of(document):
        jsonschema.Draft202012Validator.check_schema(schema)
        for ref in refs_of(schema):
            assert ref.removeprefix("#/components/schemas/") in document["components"]["schemas"]


async def test_answers_hold_to_their_schemas(start: Start, kafka: KeptRecords) -> None:
    client = await start()
    document = await (await client.get("/openapi.json")).json()

    async def holds(response: ClientResponse, method: str, path: str) -> None:
        written = document["paths"][path][method]["responses"][str(response.status)]["content"][response.content_type]
        schema = {**written["schema"], "components": document["components"]}
        jsonschema.validate(await response.json(content_type=None), schema, cls=jsonschema.Draft202012Validator)

    await holds(await client.post("/api/events", json=[EVENT, 1]), "post", "/api/events")
    await holds(await client.post("/api/events", data=b"{"), "post", "/api/events")
    await holds(await client.get("/api/ready"), "get", "/api/ready")
    await holds(await client.get("/api/health"), "get", "/api/health")
    kafka.trouble = "away"
    await holds(await client.post("/api/events", json=[EVENT]), "post", "/api/events")
    await holds(await client.get("/api/ready"), "get", "/api/ready")
    event = {"$ref": "#/components/schemas/TrafficEvent", "components": document["components"]}
    jsonschema.validate(EVENT, event, cls=jsonschema.Draft202012Validator)


def schemas_of(document: dict[str, Any]) -> list[Any]:
    found = list(document["components"]["schemas"].values())
    for item in document["paths"].values():
        for operation in item.values():
            contents = [operation.get("requestBody", {}), *operation["responses"].values()]
            found += [media["schema"] for c in contents for media in c.get("content", {}).values()]
    return found


def refs_of(schema: Any) -> list[str]:
    if isinstance(schema, dict):
        own = [schema["$ref"]] if "$ref" in schema else []
        return own + [ref for value in schema.values() for ref in refs_of(value)]
    return [ref for value in schema for ref in refs_of(value)] if isinstance(schema, list) else []
