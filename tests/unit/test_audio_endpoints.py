"""The audio endpoints over real HTTP, with an owner and an object store that say what they are told to."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

import aiohttp
import pytest
from aiohttp import WSCloseCode, WSMsgType, web
from aiohttp.test_utils import TestClient, TestServer
from prometheus_client import CollectorRegistry

from streams.web.audio.hub import Hub
from streams.web.audio.owner import AudioOwners
from streams.web.audio.parts import Seats, SocketParts
from streams.web.audio.recordings import AudioParts
from streams.web.context import Readiness
from streams.web.gateway import make_gateway
from streams.web.metrics import AudioMetrics
from streams.web.owner import OwnerAway
from streams.web.publisher import Place
from tests.unit.test_audio_socket import Log
from tests.unit.test_gateway import KeptRecords, problem
from topics.audio import Format, Store, Tier
from topics.audio_events import ClosedBy, Manifest, encode_manifest
from topics.audio_socket import ErrorCode, ErrorMessage, decode_server_message

MANIFEST = Manifest(
    session_id="s",
    user="u",
    format=Format.PCM_S16LE,
    rate=16_000,
    channels=1,
    tier=Tier.STANDARD,
    store=Store.FLAC,
    opened_ms=1,
    closed_ms=2,
    closed_by=ClosedBy.CLIENT,
    duration_ms=128,
    recording="audio/s/recording.flac",
    size_bytes=10,
    md5="0" * 32,
    sha256="0" * 64,
    seqs=((0, 3),),
    gaps=(),
)


@dataclass
class World:
    """A worker's status port, and a bucket."""

    status: int = 200
    said: dict[str, Any] = field(default_factory=dict)
    applied: list[int] = field(default_factory=list)
    manifest_: bytes | None = None
    away: bool = False
    url: str | None = None

    async def answer(self, request: web.Request) -> web.Response:
        applied = {"applied": self.applied.pop(0)} if self.applied else {}
        return web.json_response({**self.said, **applied}, status=self.status, headers={"X-Seqs": "0-3"})

    async def manifest(self, session_id: str) -> bytes | None:
        if self.away:
            await asyncio.Event().wait()
        return self.manifest_

    def link(self, key: str, expires_s: int, file_name: str) -> str:
        return f"http://store/{key}?for={expires_s}&as={file_name}"


Start = Callable[..., Awaitable[TestClient[web.Request, web.Application]]]


@pytest.fixture
async def world() -> AsyncIterator[World]:
    made = World()
    app = web.Application()
    app.router.add_get("/audio/{session_id}", made.answer)
    app.router.add_get("/audio/{session_id}/window", made.answer)
    async with TestServer(app) as server:
        made.url = str(server.make_url("")).rstrip("/")
        yield made


@pytest.fixture
async def owners(world: World) -> AsyncIterator[AudioOwners]:
    async def partitions() -> int:
        return 1

    made = AudioOwners(lambda partition: world.url, partitions, timeout_s=1.0)
    yield made
    await made.close()


@pytest.fixture
async def start(world: World, owners: AudioOwners) -> AsyncIterator[Start]:
    clients: list[TestClient[web.Request, web.Application]] = []

    async def readiness() -> Readiness:
        return Readiness(True)

    async def started(api_key: str = "", capacity: int = 10) -> TestClient[web.Request, web.Application]:
        registry = CollectorRegistry()
        metrics = AudioMetrics(registry)
        sockets = SocketParts(Log(), owners, Hub(), asyncio.Event(), metrics, seats=Seats(capacity))
        parts = AudioParts(sockets, owners, world, check_origin=not api_key, link_s=60, store_timeout_s=0.1)
        app = make_gateway(
            publisher=KeptRecords(),
            readiness=readiness,
            registry=registry,
            version="1",
            api_key=api_key,
            audio_parts=parts,
        )
        client = TestClient(TestServer(app))
        await client.start_server()
        clients.append(client)
        return client

    yield started
    for client in clients:
        await client.close()


async def test_the_owner_is_asked_until_it_has_come_to_the_open(world: World, owners: AudioOwners) -> None:
    world.said = {"status": "open", "next_seq": 7}
    world.applied = [3, 9, 10, 11, 12]
    state = await owners.state("s", Place(0, 10), 5.0)
    assert state.applied == 11, "10 is the offset of the open itself, which it has yet to fold"


@pytest.mark.parametrize("trouble", ["behind", "restoring", "gone", "nobody"])
async def test_an_owner_that_does_not_come_so_far_is_away(world: World, owners: AudioOwners, trouble: str) -> None:
    world.said = {"status": "open", "applied": 3}
    if trouble == "restoring":
        world.status = 503
    elif trouble == "gone":
        world.url = "http://127.0.0.1:9"
    elif trouble == "nobody":
        world.url = None
    with pytest.raises(OwnerAway, match="partition 0"):
        await owners.state("s", Place(0, 10), 0.2)


async def test_state_of_a_session(world: World, start: Start) -> None:
    client = await start()
    world.said = {"session_id": "s", "status": "open"}
    assert await (await client.get("/api/audio/s")).json() == world.said
    world.status = 404
    assert "no session s" in (await problem(await client.get("/api/audio/s")))["detail"]
    world.manifest_ = encode_manifest(MANIFEST)
    told = await (await client.get("/api/audio/s")).json()
    assert (told["status"], told["recording"], told["next_seq"]) == ("closed", MANIFEST.recording, 4)
    world.url = None
    answer = await client.get("/api/audio/s")
    assert answer.headers["Retry-After"] and (await problem(answer))["status"] == 503


async def test_window(world: World, start: Start) -> None:
    client = await start()
    answer = await client.get("/api/audio/s/window")
    assert (answer.status, answer.headers["X-Seqs"]) == (200, "0-3")
    world.status = 204
    answer = await client.get("/api/audio/s/window")
    assert (answer.status, await answer.read()) == (204, b"")
    world.status, world.said = 422, {"error": "no head"}
    assert "no head" in (await problem(await client.get("/api/audio/s/window")))["detail"]
    world.status = 404
    assert (await problem(await client.get("/api/audio/s/window")))["status"] == 404


async def test_download(world: World, start: Start) -> None:
    client = await start()
    world.said = {"status": "open"}
    assert (await problem(await client.get("/api/audio/s/download")))["status"] == 409
    world.said = {"status": "closed"}
    assert "without any audio" in (await problem(await client.get("/api/audio/s/download")))["detail"]
    world.manifest_ = encode_manifest(MANIFEST)
    answer = await client.get("/api/audio/s/download", allow_redirects=False)
    url = "http://store/audio/s/recording.flac?for=60&as=s.flac"
    assert (answer.status, answer.headers["Location"], answer.headers["Cache-Control"]) == (302, url, "no-store")
    told = await (await client.get("/api/audio/s/download", headers={"Accept": "application/json"})).json()
    assert (told["url"], told["expires_in"]) == (url, 60)
    world.away = True
    assert (await problem(await client.get("/api/audio/s/download")))["status"] == 503


async def test_the_key_is_wanted_of_a_websocket_too(start: Start) -> None:
    client = await start(api_key="k")
    with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
        await client.ws_connect("/ws/audio/s")
    assert refused.value.status == 401
    async with client.ws_connect("/ws/audio/s", headers={"Authorization": "Bearer k"}):
        pass
    assert (await client.get("/api/audio/s", headers={"Authorization": "Bearer x"})).status == 401


async def test_a_plain_request_is_no_websocket(start: Start) -> None:
    client = await start()
    assert "WebSocket" in (await problem(await client.get("/ws/audio/s")))["detail"]


async def test_all_of_it_is_in_the_document(start: Start) -> None:
    client = await start()
    document = await (await client.get("/openapi.json")).json()
    for path in (
        "/ws/audio/{session_id}",
        *(f"/api/audio/{{session_id}}{end}" for end in ("", "/window", "/download")),
    ):
        assert document["paths"][path]["get"]["parameters"][0]["name"] == "session_id"


async def test_more_connections_than_a_gateway_takes_are_told_so(start: Start) -> None:
    client = await start(capacity=2)
    first, second = await client.ws_connect("/ws/audio/a"), await client.ws_connect("/ws/audio/b")

    async def turned_away() -> bool:
        async with client.ws_connect("/ws/audio/c") as third:
            await third.send_str("no control message")
            said = decode_server_message((await third.receive()).data)
            assert isinstance(said, ErrorMessage)
            assert (await third.receive()).type is WSMsgType.CLOSE
            if said.code is not ErrorCode.UNAVAILABLE:
                assert said.code is ErrorCode.BAD_MESSAGE
                return False
            assert "2 audio connections" in said.message and third.close_code == WSCloseCode.TRY_AGAIN_LATER
            return True

    assert await turned_away()
    metrics = await (await client.get("/metrics")).text()
    assert 'sluiceway_gateway_audio_errors_total{code="too_many"} 1.0' in metrics
    assert "sluiceway_gateway_audio_sockets 2.0" in metrics
    await first.close()
    async with asyncio.timeout(5):
        while await turned_away():  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    await second.close()
