"""The load of `sluiceway bench audio`, a process of its own: many sessions of live speech on one event loop.

Each chunk goes out when a microphone would have it, and the sessions' chunks are spread evenly over their period. Speaks in
lines of JSON on standard output: one a second while it goes on, one when each phase begins, and last what came of it.
"""

from __future__ import annotations

import asyncio
import heapq
import json
import sys
import time
from typing import Any

import msgspec
import numpy as np

from compose.bench.audio_connection import AudioConnection
from compose.bench.voice import CHUNK_S, Voice
from compose.figures import quantile

#: So many sessions are opened a second.
OPENED_PER_S = 100
_WARM_UP_S = 3.0
_TICK_S = 0.002
_OPEN_S = 60.0
_DURABLE_S = 30.0


class Plan(msgspec.Struct, frozen=True):
    """What is sent: for `seconds` after all sessions are open, then at most `close_s` to close them all."""

    host: str
    port: int
    prefix: str
    sessions: int
    seconds: float
    close_s: float


class Load:
    """The sessions and their schedule."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._due: list[tuple[float, int]] = []
        self._late: list[float] = []
        self._started = time.monotonic()
        self._sending = True
        voice, host = Voice(), f"{plan.host}:{plan.port}"
        self.connections = [
            AudioConnection(number, f"{plan.prefix}-{number}", host, voice, lambda number=number: self._begin(number))  # type: ignore[misc]
            for number in range(plan.sessions)
        ]

    async def run(self) -> dict[str, Any]:
        """Open, send, close; what came of it."""
        sending = asyncio.create_task(self._send())
        telling = asyncio.create_task(self._tell_each_second())
        try:
            await self._open()
            await asyncio.sleep(_WARM_UP_S)
            from_s = time.monotonic()
            self._say("measuring")
            await asyncio.sleep(self._plan.seconds)
            until_s = time.monotonic()
            self._say("measured")
            self._sending = False
            await sending
            await self._until(lambda c: c.durable == c.sent - 1 or bool(c.trouble), _DURABLE_S)
            self._say("closing")
            closing_s = time.monotonic()
            for connection in self.connections:
                connection.send_close()
            await self._until(lambda c: c.over.is_set(), self._plan.close_s)
            return self._result(from_s, until_s, time.monotonic() - closing_s)
        finally:
            sending.cancel()
            telling.cancel()

    async def _open(self) -> None:
        loop = asyncio.get_running_loop()
        for number, connection in enumerate(self.connections):
            await asyncio.sleep(max(0.0, self._started + number / OPENED_PER_S - time.monotonic()))
            try:
                await loop.create_connection(
                    lambda connection=connection: connection,  # type: ignore[misc]
                    self._plan.host,
                    self._plan.port,
                )
            except OSError as error:
                connection.trouble = str(error)
        await self._until(lambda c: c.sent > 0 or bool(c.trouble), _OPEN_S)

    def _begin(self, number: int) -> None:
        """The session may send: its first chunk goes out at its own place in the period."""
        now = time.monotonic()
        place = self._started + number / len(self.connections) * CHUNK_S
        heapq.heappush(self._due, (place + (1 + (now - place) // CHUNK_S) * CHUNK_S, number))

    async def _send(self) -> None:
        due = self._due
        while self._sending:
            now = time.monotonic()
            while due and due[0][0] <= now:
                at, number = due[0]
                self.connections[number].send_chunk()
                heapq.heapreplace(due, (at + CHUNK_S, number))
                self._late.append(now - at)
            await asyncio.sleep(_TICK_S)

    async def _until(self, done: Any, within_s: float) -> None:
        deadline = time.monotonic() + within_s
        while not all(map(done, self.connections)) and time.monotonic() < deadline:  # noqa: ASYNC110
            await asyncio.sleep(0.02)

    async def _tell_each_second(self) -> None:
        while True:
            self._say("")
            await asyncio.sleep(1.0)

    def _say(self, phase: str) -> None:
        sent = sum(c.sent for c in self.connections)
        closed = sum(c.closed is not None for c in self.connections)
        print(json.dumps({"phase": phase, "sent": sent, "closed": closed}), flush=True)

    def _result(self, from_s: float, until_s: float, close_s: float) -> dict[str, Any]:
        latencies: list[float] = []
        frames = 0
        for connection in self.connections:
            at = np.asarray(connection.sent_at)
            within = (at >= from_s) & (at < until_s)
            frames += int(within.sum())
            latencies += np.asarray(connection.latencies)[within[: len(connection.latencies)]].tolist()
        latencies.sort()
        late = sorted(self._late)
        return {
            "phase": "done",
            "frames": frames,
            "durable_p50_s": quantile(latencies, 0.50) if latencies else None,
            "durable_p99_s": quantile(latencies, 0.99) if latencies else None,
            "durable_max_s": latencies[-1] if latencies else None,
            "sent_late_p99_s": quantile(late, 0.99) if late else None,
            "close_s": close_s,
            "sessions": [
                [c.session_id, c.sent, c.durable, c.closed.md5 if c.closed else None] for c in self.connections
            ],
            "troubles": sorted({c.trouble for c in self.connections if c.trouble})[:5],
        }


def main() -> None:
    """Send what the one argument says."""
    print(json.dumps(asyncio.run(_run(msgspec.json.decode(sys.argv[1], type=Plan)))), flush=True)


async def _run(plan: Plan) -> dict[str, Any]:
    return await Load(plan).run()


if __name__ == "__main__":
    main()
