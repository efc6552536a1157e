"""What a client is told comes in an order that makes sense, whichever way it is written."""

from __future__ import annotations

import asyncio

from prometheus_client import CollectorRegistry

from streams.web.audio.parts import SocketLimits
from streams.web.audio.teller import Teller
from streams.web.metrics import AudioMetrics
from tests.unit.test_audio_socket import Wire
from topics.audio_socket import DurableMessage, ResumeMessage, StoredMessage


class SlowWire(Wire):
    """Takes a text that is sent when `gate` is open, and one that is offered at once."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = asyncio.Event()
        self.sending = asyncio.Event()

    async def send(self, text: str) -> None:
        self.sending.set()
        await self.gate.wait()
        await super().send(text)


async def _nothing() -> None:
    return


async def test_a_newer_durable_does_not_pass_an_older_one_that_is_being_said() -> None:
    wire, over = SlowWire(), asyncio.Event()
    teller = Teller(wire, SocketLimits(durable_every_s=0.0), AudioMetrics(CollectorRegistry()), over, _nothing)
    telling = asyncio.create_task(teller.run())
    teller.resume(0)
    teller.durable(4)
    await asyncio.wait_for(wire.sending.wait(), 5)
    teller.durable(9)
    wire.gate.set()
    async with asyncio.timeout(5):
        while DurableMessage(9) not in wire.heard:  # noqa: ASYNC110
            await asyncio.sleep(0)
    assert wire.heard == [ResumeMessage(0), DurableMessage(4), DurableMessage(9)]
    teller.durable(10)
    assert wire.heard[-1] == DurableMessage(10), "what nothing stands before is said at once"
    teller.stored(3)
    async with asyncio.timeout(5):
        while StoredMessage(3) not in wire.heard:  # noqa: ASYNC110
            await asyncio.sleep(0)
    telling.cancel()
    await asyncio.gather(telling, return_exceptions=True)
