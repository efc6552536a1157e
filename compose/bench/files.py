"""Files up to the store, straight by presigned URL against through the gateway: seconds, and what each costs the gateway.

Each case (so many files at once of one size) has two gateways of its own, one a way, since memory that a process once
took stays with it for a while. The ways take turns, and change who is first.
"""

from __future__ import annotations

import asyncio
import shutil
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp

from compose.ai_stream import ai
from compose.audio_stream import audio
from compose.bench.audio import share_two_cores
from compose.bench.events import make_topics
from compose.bench.files_client import Client
from compose.bench.files_report import WAYS, Found
from compose.bench.gateway import MeasuredGateway
from compose.bench.result import BenchFailed
from compose.clients import bucket, clickhouse
from compose.figures import total
from compose.files_stream import files
from compose.local.process import free_port
from compose.local.stack import FREE_BYTES_MIN, LocalStack
from compose.settings import Settings
from compose.traffic_stream import traffic
from sinks.objects import Bucket
from streams.web.metrics import REQUEST_BYTES
from topics.specs import OWNERS, compacted

MB = 1_000_000
_WARM_BYTES = 1 * MB
_SAMPLE_S = 0.02
_REST_S = 1.0
#: Small files go up more often: each of them is soon sent, and its figures are coarse.
_ROUNDS_MIN, _ROUNDS_MAX, _ROUNDS_MB = 2, 7, 300
_QUEUED = aiohttp.ClientTimeout(total=None, sock_connect=30, sock_read=120)


@dataclass(frozen=True)
class Case:
    """`users` files of `size_mb` each, at once."""

    size_mb: int
    users: int = 1

    @property
    def rounds(self) -> int:
        """How often each way takes its turn."""
        return max(_ROUNDS_MIN, min(_ROUNDS_MAX, _ROUNDS_MB // (self.size_mb * self.users)))

    @property
    def title(self) -> str:
        """As it is shown."""
        return f"{self.size_mb} MB" if self.users == 1 else f"{self.users} x {self.size_mb} MB"


#: Called before each turn with what it is.
Progress = Callable[[str], None]


@contextmanager
def files_stack(folder: Path, cases: Sequence[Case]) -> Iterator[LocalStack]:
    """The stack on two cores. Raises BenchFailed where the disk is too small, LocalStackError, TooFewCores."""
    share_two_cores()
    # Objects go after each turn; the rest is for the servers' own.
    wanted = max(case.size_mb * case.users for case in cases) * MB * 5 // 4 + 2 * FREE_BYTES_MIN
    free = shutil.disk_usage(folder).free
    if free < wanted:
        raise BenchFailed(
            f"{folder.parent} has {free / MB:,.0f} MB free, and {wanted / MB:,.0f} MB are wanted: make room, "
            "choose another disk by TMPDIR, or smaller files by --sizes and --user-mb"
        )
    with LocalStack.on_free_ports(folder / "files") as stack:
        yield stack


def measure_files(stack: LocalStack, cases: Sequence[Case], progress: Progress) -> Iterator[Found]:
    """What each case found. Raises BenchFailed."""
    asyncio.run(_make_topics(stack.settings()))
    for number, case in enumerate(cases):
        with _gateways(stack, case, number) as gateways:
            try:
                yield asyncio.run(_measure(gateways, case, progress))
            except (aiohttp.ClientError, TimeoutError) as error:
                for gateway in gateways.values():
                    gateway.check()
                raise BenchFailed(f"an upload of {case.title} broke off: {error!r}") from None


async def _make_topics(settings: Settings) -> None:
    """All that a gateway connects to: it asks again and again for what is missing, which costs more than a small upload."""
    objects, sink = bucket(settings), clickhouse(settings)
    specs = [compacted(OWNERS, 1)]
    try:
        for spec in (traffic(settings), audio(settings, objects), ai(settings, sink), files(settings, objects)):
            specs.extend(spec.topics)
            spec.close()
    finally:
        await objects.close()
        await sink.close()
    await asyncio.to_thread(make_topics, settings.kafka_bootstrap, specs)


@contextmanager
def _gateways(stack: LocalStack, case: Case, number: int) -> Iterator[Mapping[str, MeasuredGateway]]:
    """One a way, ready."""
    made: dict[str, MeasuredGateway] = {}
    try:
        for way in WAYS:
            # Nobody waits for a place: what is measured is the way, not a limit.
            own = stack.settings(
                gateway_port=free_port(), files_relay=True, files_relays=max(2, case.users), log_level="warning"
            )
            made[way] = MeasuredGateway(own, stack.data_dir / f"gateway-{number}-{way}.log")
        for gateway in made.values():
            gateway.wait_ready()
        yield made
    finally:
        for gateway in made.values():
            gateway.stop()


@dataclass
class _Turns:
    """What one way took, a value a turn; memory above the rest before the first, bytes."""

    seconds: list[float] = field(default_factory=list)
    cpu_s: list[float] = field(default_factory=list)
    through_bytes: list[float] = field(default_factory=list)
    rest_bytes: int = 0
    peak_bytes: int = 0


async def _measure(gateways: Mapping[str, MeasuredGateway], case: Case, progress: Progress) -> Found:
    turns = {way: _Turns() for way in WAYS}
    objects = bucket(gateways[WAYS[0]].settings)
    connector = aiohttp.TCPConnector(limit=0)
    try:
        async with aiohttp.ClientSession(connector=connector, timeout=_QUEUED) as session:
            clients = {way: Client(session, gateway.url) for way, gateway in gateways.items()}
            for way in WAYS:
                await _sent(clients[way], way, 1, _WARM_BYTES, objects)
            idle = await _rest(gateways, turns)
            for number in range(case.rounds):
                for way in WAYS if number % 2 == 0 else reversed(WAYS):
                    progress(f"{case.title}, {way}")
                    await _turn(gateways[way], clients[way], way, case, turns[way], objects)
    finally:
        await objects.close()
    return Found(case.title, case.size_mb * MB, case.users, case.rounds, idle, {w: _taken(t) for w, t in turns.items()})


async def _rest(gateways: Mapping[str, MeasuredGateway], turns: Mapping[str, _Turns]) -> float:
    """Note what the gateways have resident when nothing is asked of them; the share of a core that one uses then."""
    before, started = sum(gateway.cpu_s() for gateway in gateways.values()), time.perf_counter()
    await asyncio.sleep(_REST_S)
    for way, gateway in gateways.items():
        turns[way].rest_bytes = turns[way].peak_bytes = gateway.rss_bytes()
    used = sum(gateway.cpu_s() for gateway in gateways.values()) - before
    return used / len(gateways) / (time.perf_counter() - started)


async def _turn(gateway: MeasuredGateway, client: Client, way: str, case: Case, turns: _Turns, objects: Bucket) -> None:
    async def sample() -> None:
        while True:
            turns.peak_bytes = max(turns.peak_bytes, gateway.rss_bytes())
            await asyncio.sleep(_SAMPLE_S)

    through = await asyncio.to_thread(_request_bytes, gateway)
    cpu_s, started = gateway.cpu_s(), time.perf_counter()
    sampling = asyncio.create_task(sample())
    try:
        keys = await _uploads(client, way, case.users, case.size_mb * MB)
    finally:
        sampling.cancel()
    turns.seconds.append(time.perf_counter() - started)
    turns.cpu_s.append(gateway.cpu_s() - cpu_s)
    turns.through_bytes.append(await asyncio.to_thread(_request_bytes, gateway) - through)
    await objects.delete_many(keys)


async def _sent(client: Client, way: str, users: int, size_bytes: int, objects: Bucket) -> None:
    await objects.delete_many(await _uploads(client, way, users, size_bytes))


async def _uploads(client: Client, way: str, users: int, size_bytes: int) -> list[str]:
    upload = client.direct if way == "direct" else client.relay
    return await asyncio.gather(*(upload(size_bytes) for _ in range(users)))


def _request_bytes(gateway: MeasuredGateway) -> float:
    return total(gateway.metrics(), f"{REQUEST_BYTES}_total")


def _taken(turns: _Turns) -> dict[str, Any]:
    return {
        "seconds": round(statistics.median(turns.seconds), 4),
        "seconds_min": round(min(turns.seconds), 4),
        "seconds_max": round(max(turns.seconds), 4),
        "gateway_cpu_s": round(statistics.fmean(turns.cpu_s), 4),
        "gateway_memory_bytes": turns.peak_bytes - turns.rest_bytes,
        "gateway_rest_bytes": turns.rest_bytes,
        "through_gateway_bytes": round(statistics.fmean(turns.through_bytes)),
    }
