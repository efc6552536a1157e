"""What an owner answers about its sessions."""

from __future__ import annotations

import asyncio
import io
from types import SimpleNamespace
from typing import Any

import soundfile
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer

from streams.audio.routes import AudioRoutes
from tests.audiofold import Close, World, chunk, opened, pcm
from topics.audio import Format, Store
from topics.partitioning import partition_of


class _Ready(asyncio.Event):
    def __init__(self, ready: bool = True) -> None:
        super().__init__()
        if ready:
            self.set()


async def asked(world: World, *paths: str, partitions: int = 1, ready: bool = True) -> list[tuple[int, bytes]]:
    """Status and body of each request to a worker that owns partition 0."""
    worker: Any = SimpleNamespace(
        partitions=partitions, runners={0: SimpleNamespace(fold=world.fold, ready=_Ready(ready))}
    )
    app = web.Application()
    app.router.add_routes(AudioRoutes(worker).all())
    async with TestClient(TestServer(app)) as client:
        answers = [await client.get(path) for path in paths]
        return [(answer.status, await answer.read()) for answer in answers]


async def test_state_and_window_of_a_session() -> None:
    world = World()
    world.say(opened())
    world.talk("s", 0, 130)
    world.say(chunk("s", 135))
    world.settle()
    (code, state), (_, wav), (_, raw), (missing, _) = await asked(
        world, "/audio/s", "/audio/s/window", "/audio/s/window?as=raw", "/audio/other"
    )
    assert (code, missing) == (200, 404)
    assert b'"status":"open"' in state and b'"next_seq":131' in state and b'"gaps":[[131,134]]' in state
    last = [*range(12, 131), 135]
    assert raw == b"".join(pcm("s", seq) for seq in last), "the last two minutes of audio"
    samples, rate = soundfile.read(io.BytesIO(wav), dtype="int16")
    assert (rate, samples.tobytes()) == (8_000, raw)
    world.say(Close("s"))
    world.settle()
    (code, state), (window, _) = await asked(world, "/audio/s", "/audio/s/window")
    assert (code, window) == (200, 204)
    assert b'"status":"closed"' in state and b'"recording":"audio/s/recording"' in state


async def test_what_another_owner_must_be_asked_and_what_cannot_be_played() -> None:
    world = World()
    world.say(opened("f", format=Format.FLAC, store=Store.ASIS))
    world.say(chunk("f", 0, data=b"no frame here"))
    world.settle()
    away = next(name for name in "abcdefgh" if partition_of(name.encode(), 2) == 1)
    (played, _), (bad, _) = await asked(world, "/audio/f/window", "/audio/..%2f/window")
    assert (played, bad) == (422, 400)
    ((elsewhere, _),) = await asked(world, f"/audio/{away}", partitions=2)
    ((restoring, _),) = await asked(world, "/audio/f", ready=False)
    assert (elsewhere, restoring) == (421, 503)
