"""The ways in against real Kafka: the publisher's promise, the gateway around an outage, a log replayed twice."""

from __future__ import annotations

import asyncio
import gzip
import json
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import structlog
import typer
from aiokafka import AIOKafkaConsumer, TopicPartition
from confluent_kafka.admin import AdminClient, NewTopic
from typer.testing import CliRunner

from compose.commands import gateway as gateway_command
from compose.commands.gateway import serve_gateway
from compose.commands.replay_log import replay_log
from compose.kafka import kafka_access, traffic_publisher
from compose.local.generate import Shape, generate_events, generate_log
from compose.local.process import free_port
from compose.local.stack import LocalStack
from compose.settings import SettingError, Settings
from streams.runtime.admin import TopicAdmin
from streams.traffic.accesslog import parse_line
from streams.web.publisher import KafkaPublisher, Place, PublishLimits, PublishUnavailable, Record
from topics.partitioning import partition_of
from topics.specs import TRAFFIC_EVENTS, source
from topics.traffic import Malformed

pytestmark = pytest.mark.stack

QUICK = PublishLimits(delivery_timeout_s=2.0, request_timeout_s=1.0, reconnect_max_s=0.3)
NOW_MS = time.time_ns() // 1_000_000


@pytest.fixture
def topic(stack: LocalStack, request: pytest.FixtureRequest) -> str:
    """A topic of this test alone."""
    name = f"ways-in-{request.node.name.partition('[')[0]}"
    admin = AdminClient({"bootstrap.servers": stack.kafka.bootstrap, "log_level": 0})
    admin.create_topics([NewTopic(name, 4, 1)])[name].result(15)
    return name


@pytest.fixture
async def events_from(settings: Settings) -> Callable[[], Awaitable[list[Any]]]:
    """Reads what came into the traffic topic since the fixture was made."""
    admin = TopicAdmin({"bootstrap.servers": settings.kafka_bootstrap}, 1)
    spec = source(TRAFFIC_EVENTS, settings.partitions, settings.traffic_retention_h, settings.max_record_bytes)
    await admin.ensure([spec])
    begin = {tp: records[-1].offset + 1 for tp, records in (await read(settings, TRAFFIC_EVENTS)).items() if records}

    async def since() -> list[Any]:
        found = await read(settings, TRAFFIC_EVENTS)
        return [r for tp, records in found.items() for r in records if r.offset >= begin.get(tp, 0)]

    return since


async def read(settings: Settings, topic: str) -> dict[int, list[Any]]:
    """Every committed record of a topic, by partition."""
    consumer = AIOKafkaConsumer(**kafka_access(settings).aiokafka(), isolation_level="read_committed")
    await consumer.start()
    try:
        partitions = [TopicPartition(topic, p) for p in range(4)]
        consumer.assign(partitions)
        await consumer.seek_to_beginning(*partitions)
        ends = await consumer.end_offsets(partitions)
        found: dict[int, list[Any]] = {tp.partition: [] for tp in partitions}
        async with asyncio.timeout(30):
            while any([await consumer.position(tp) < end for tp, end in ends.items()]):
                for tp, records in (await consumer.getmany(timeout_ms=200)).items():
                    found[tp.partition] += records
        return found
    finally:
        await consumer.stop()


@asynccontextmanager
async def publisher(settings: Settings, topic: str, limits: PublishLimits = QUICK) -> AsyncIterator[KafkaPublisher]:
    made = KafkaPublisher(kafka_access(settings).aiokafka(), topic, "test", limits)
    await made.start()
    try:
        yield made
    finally:
        await made.close()


async def until_published(made: KafkaPublisher, records: Sequence[Record], deadline_s: float = 30) -> int:
    """Send the same records until they are confirmed; how often that took."""
    async with asyncio.timeout(deadline_s):
        for attempt in range(1, 10_000):
            try:
                await made.publish(records)
                return attempt
            except PublishUnavailable:
                await asyncio.sleep(0.1)
    raise AssertionError


async def test_records_land_once_in_the_partition_of_their_key(settings: Settings, topic: str) -> None:
    records = list(generate_events(1, 20_000, Shape(NOW_MS)))
    async with publisher(settings, topic, PublishLimits()) as made:
        await made.wait_connected(10)
        await asyncio.gather(*[made.publish(records[at : at + 77]) for at in range(0, len(records), 77)])
    found = await read(settings, topic)
    assert Counter((r.key, r.value) for rs in found.values() for r in rs) == Counter(records)
    for partition, rs in found.items():
        assert all(partition_of(r.key, 4) == partition for r in rs)
        assert all(dict(r.headers) == {"producer": b"test"} for r in rs)


async def test_what_is_posted_lands_in_order_and_each_is_told_where(settings: Settings, topic: str) -> None:
    told: dict[tuple[bytes, int], Place | PublishUnavailable] = {}
    keys = [b"k%d" % number for number in range(10)]
    async with publisher(settings, topic, PublishLimits(linger_s=0.02, compression=None)) as made:
        await made.wait_connected(10)
        for number in range(300):
            for key in keys:
                at = (key, number)
                assert at not in told
                made.post(
                    (key, b"%d" % number, [("n", b"%d" % number)]), lambda found, at=at: told.__setitem__(at, found)
                )
            await asyncio.sleep(0)
        async with asyncio.timeout(20):
            while len(told) < 3_000:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
    found = {(p, r.offset): (r.key, int(r.value)) for p, rs in (await read(settings, topic)).items() for r in rs}
    assert {place: at for at, place in told.items()} == found
    for key in keys:
        offsets = [told[key, number].offset for number in range(300)]  # type: ignore[union-attr]
        assert offsets == sorted(offsets)


async def test_what_was_posted_to_a_kafka_that_hangs_is_told_once(
    stack: LocalStack, settings: Settings, topic: str
) -> None:
    told: list[Place | PublishUnavailable] = []
    limits = PublishLimits(delivery_timeout_s=2.0, request_timeout_s=1.0, reconnect_max_s=0.3, linger_s=0.02)
    async with publisher(settings, topic, limits) as made:
        made.post((b"k", b"early", []), told.append)
        assert isinstance(told.pop(), PublishUnavailable)
        await made.wait_connected(10)
        stack.kafka.signal(signal.SIGSTOP)
        try:
            for number in range(50):
                made.post((b"k%d" % (number % 8), b"v", []), told.append)
                await asyncio.sleep(0.002)
            async with asyncio.timeout(10):
                while len(told) < 50:  # noqa: ASYNC110
                    await asyncio.sleep(0.01)
            assert all(isinstance(found, PublishUnavailable) for found in told)
        finally:
            stack.kafka.signal(signal.SIGCONT)
        await until_published(made, [(b"k", b"again")])
    assert len(told) == 50


async def test_a_publisher_outlives_kafka(stack: LocalStack, settings: Settings, topic: str) -> None:
    stack.kafka.kill()
    async with publisher(settings, topic) as made:
        with pytest.raises(PublishUnavailable, match="cannot be reached"):
            await made.publish([(b"k", b"early")])
        assert not await made.reachable()
        await asyncio.to_thread(stack.kafka.start)
        await until_published(made, [(b"k", b"1")])
        assert await made.reachable()
        stack.kafka.signal(signal.SIGSTOP)
        try:
            started = time.monotonic()
            with pytest.raises(PublishUnavailable, match="no answer"):
                await made.publish([(b"k", b"2")])
            assert time.monotonic() - started < 3
            assert not await made.reachable()
        finally:
            stack.kafka.signal(signal.SIGCONT)
        await until_published(made, [(b"k", b"2")])
    values = [r.value for rs in (await read(settings, topic)).values() for r in rs]
    assert b"early" not in values
    assert set(values) == {b"1", b"2"}
    assert len(asyncio.all_tasks()) == 1


async def test_what_waits_for_a_slow_kafka_is_bounded(stack: LocalStack, settings: Settings, topic: str) -> None:
    limits = PublishLimits(delivery_timeout_s=2.0, request_timeout_s=1.0, pending_bytes_max=10_000)
    async with publisher(settings, topic, limits) as made:
        await made.wait_connected(10)
        stack.kafka.signal(signal.SIGSTOP)
        try:
            waiting = [asyncio.create_task(made.publish([(b"k%d" % i, b"x" * 1_000)])) for i in range(20)]
            done, pending = await asyncio.wait(waiting, timeout=0.5)
            assert (len(done), len(pending)) == (11, 9)
            assert all("slower than its input" in str(t.exception()) for t in done)
            _, pending = await asyncio.wait(pending, timeout=10)
            assert not pending
        finally:
            stack.kafka.signal(signal.SIGCONT)


async def test_who_posts_is_told_when_to_stop_and_when_to_go_on(
    stack: LocalStack, settings: Settings, topic: str
) -> None:
    told: list[Place | PublishUnavailable] = []
    room: list[int] = []
    all_told = asyncio.Event()

    def tell(found: Place | PublishUnavailable) -> None:
        told.append(found)
        if len(told) == 11:
            all_told.set()

    async with publisher(settings, topic, PublishLimits(pending_bytes_max=10_000)) as made:
        await made.wait_connected(10)
        await made.publish([(b"k", b"1")])
        for _ in range(9):
            made.post((b"key", b"x" * 1_000, []), tell)
        assert not made.crowded
        for _ in range(2):
            made.post((b"key", b"x" * 1_000, []), tell)
        assert made.crowded
        made.when_room(lambda: room.append(len(told)))
        async with asyncio.timeout(10):
            await all_told.wait()
        assert not made.crowded
    assert [type(found) for found in told] == [Place] * 11, "nothing that was posted is refused"
    assert len(room) == 1 and 6 <= room[0] + 1 <= 11


async def test_nothing_confirmed_is_lost_when_kafka_dies_under_load(
    stack: LocalStack, settings: Settings, topic: str
) -> None:
    records = list(generate_events(2, 30_000, Shape(NOW_MS)))
    chunks = [records[at : at + 100] for at in range(0, len(records), 100)]
    confirmed: list[Record] = []
    under_way = asyncio.Event()
    async with publisher(settings, topic) as made:
        await made.wait_connected(10)

        async def send(mine: list[list[Record]]) -> None:
            for chunk in mine:
                try:
                    await made.publish(chunk)
                    confirmed.extend(chunk)
                    if len(confirmed) >= 3_000:
                        under_way.set()
                except PublishUnavailable:
                    await asyncio.sleep(0.05)

        senders = [asyncio.create_task(send(chunks[i::8])) for i in range(8)]
        async with asyncio.timeout(10):
            await under_way.wait()
        stack.kafka.kill()
        await asyncio.to_thread(stack.kafka.start)
        async with asyncio.timeout(60):
            await asyncio.gather(*senders)
        assert await until_published(made, records[:1]) >= 1
    stored = {r.key for rs in (await read(settings, topic)).values() for r in rs}
    assert {key for key, _ in confirmed} <= stored


async def test_a_202_means_that_kafka_has_them(
    stack: LocalStack,
    settings: Settings,
    events_from: Callable[[], Awaitable[list[Any]]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(gateway_command, "traffic_publisher", partial(traffic_publisher, limits=QUICK))
    served = stack.settings(gateway_port=0)
    values = [value for _, value in generate_events(3, 2_000, Shape(NOW_MS, malformed=0.01))]
    body = gzip.compress(b"\n".join(values))
    headers = {"Content-Type": "application/x-ndjson", "Content-Encoding": "gzip"}
    async with serve_gateway(served) as url, aiohttp.ClientSession(url) as client:
        await until(lambda: status(client, "/api/ready"), 200)
        response = await client.post("/api/events", data=body, headers=headers)
        assert response.status == 202
        answer = await response.json()
        assert answer["accepted"] == len(values) - len(answer["rejected"])
        stored = await events_from()
        assert len(stored) == answer["accepted"]
        assert {json.loads(r.value)["event_id"].encode() for r in stored} == {r.key for r in stored}

        stack.kafka.kill()
        refused = await client.post("/api/events", data=body, headers=headers)
        assert refused.status == 503
        assert refused.content_type == "application/problem+json"
        assert await status(client, "/api/ready") == 503
        assert await status(client, "/api/health") == 200
        await asyncio.to_thread(stack.kafka.start)
        await until(lambda: status(client, "/api/ready"), 200)
        assert (await client.post("/api/events", data=body, headers=headers)).status == 202
    again = await events_from()
    assert {r.key for r in again} == {r.key for r in stored}


async def status(client: aiohttp.ClientSession, path: str) -> int:
    return (await client.get(path)).status


async def until(ask: Callable[[], Awaitable[int]], wanted: int, deadline_s: float = 20) -> None:
    async with asyncio.timeout(deadline_s):
        while await ask() != wanted:  # noqa: ASYNC110 (what is asked is a server)
            await asyncio.sleep(0.05)


async def test_what_is_in_flight_at_shutdown_is_answered(
    stack: LocalStack, events_from: Callable[[], Awaitable[list[Any]]]
) -> None:
    values = [json.loads(value) for _, value in generate_events(4, 10, Shape(NOW_MS))]
    gateway = serve_gateway(stack.settings(gateway_port=0))
    async with aiohttp.ClientSession(await gateway.__aenter__()) as client:
        await until(lambda: status(client, "/api/ready"), 200)
        stack.kafka.signal(signal.SIGSTOP)
        try:
            post = asyncio.create_task(client.post("/api/events", json=values))
            await until(lambda: in_flight(client), 2)  # the question is one of them
            closing = asyncio.create_task(gateway.__aexit__(None, None, None))
            await asyncio.wait({post, closing}, timeout=1)
            assert not post.done()
        finally:
            stack.kafka.signal(signal.SIGCONT)
        async with asyncio.timeout(20):
            assert (await post).status == 202
            await closing
    assert len(await events_from()) == len(values)


async def in_flight(client: aiohttp.ClientSession) -> int:
    text = await (await client.get("/metrics")).text()
    return int(float(text.partition("\nsluiceway_gateway_requests_in_flight ")[2].split()[0]))


async def test_a_gateway_process_starts_without_kafka_and_stops_when_told() -> None:
    port = free_port()
    lonely = Settings(kafka_bootstrap=f"127.0.0.1:{free_port()}", gateway_port=port)
    command = [sys.executable, "-c", "from compose.commands.gateway import gateway; gateway()"]
    process = subprocess.Popen(command, env=lonely.environ(), cwd=Path(__file__).parents[2])
    try:
        async with aiohttp.ClientSession(f"http://127.0.0.1:{port}") as client:
            async with asyncio.timeout(20):
                while True:
                    try:
                        assert await status(client, "/api/health") == 200
                        break
                    except aiohttp.ClientConnectionError:
                        assert process.poll() is None
                        await asyncio.sleep(0.05)
            assert await status(client, "/api/ready") == 503
        process.terminate()
        assert await asyncio.to_thread(process.wait, 10) == 0
    finally:
        process.kill()


async def test_an_open_gateway_off_loopback_is_refused_and_so_is_a_taken_port() -> None:
    with pytest.raises(SettingError, match="SLUICEWAY_API_KEY"):
        async with serve_gateway(Settings(gateway_host="0.0.0.0", gateway_port=0)):
            pass
    async with serve_gateway(Settings(gateway_host="0.0.0.0", gateway_port=0, api_key="k")) as url:
        port = int(url.rpartition(":")[2])
        with pytest.raises(SettingError, match="cannot listen"):
            async with serve_gateway(Settings(gateway_port=port)):
                pass


class TestReplay:
    """`sluiceway replay-log` as a user calls it."""

    @pytest.fixture(autouse=True)
    def _own_logs(self) -> Iterator[None]:
        """The command sends logs to a stream that ends with it."""
        yield
        structlog.reset_defaults()

    @staticmethod
    def replay(settings: Settings, path: Path, *options: str) -> tuple[int, dict[str, Any]]:
        app = typer.Typer()
        app.command()(replay_log)
        result = CliRunner().invoke(app, [str(path), "--json", *options], env=settings.environ())
        return result.exit_code, json.loads(result.stdout)

    async def test_twice_gives_the_same_ids(
        self, settings: Settings, events_from: Callable[[], Awaitable[list[Any]]], tmp_path: Path
    ) -> None:
        lines = list(generate_log(5, 20_000, Shape(1_431_857_103_000, duplicates=0.05, malformed=0.01)))
        path = tmp_path / "access.log.gz"
        path.write_bytes(gzip.compress(b"\n".join(lines)))
        good = [line for line in lines if not isinstance(parse_line(line), Malformed)]
        code, summary = await asyncio.to_thread(self.replay, settings, path, "--rebase")
        assert code == 0, summary
        assert (summary["lines"], summary["sent"], summary["malformed"]) == (20_000, len(good), 20_000 - len(good))
        assert summary["too_old"] == summary["too_new"] == 0
        assert [e["reason"] for e in summary["examples"]]
        first = await events_from()
        assert len({r.key for r in first}) == len(first) == len(good)
        newest = max(json.loads(r.value)["timestamp_ms"] for r in first)
        assert abs(newest - time.time() * 1000) < 60_000
        code, _ = await asyncio.to_thread(self.replay, settings, path, "--rebase")
        assert code == 0
        both = await events_from()
        assert len(both) == 2 * len(first)
        assert {r.key for r in both} == {r.key for r in first}
        assert all(r.partition == partition_of(r.key, settings.partitions) for r in both)

    async def test_only_lines_within_the_lateness_are_sent(
        self, settings: Settings, events_from: Callable[[], Awaitable[list[Any]]], tmp_path: Path
    ) -> None:
        path = tmp_path / "access.log"
        hours = 144
        path.write_bytes(b"\n".join(generate_log(6, 14_400, Shape(1_431_857_103_000, span_ms=hours * 3_600_000))))
        code, summary = await asyncio.to_thread(self.replay, settings, path)
        assert (code, summary["sent"], summary["too_old"]) == (1, 0, 14_400)
        code, summary = await asyncio.to_thread(self.replay, settings, path, "--rebase")
        assert code == 0
        assert summary["sent"] + summary["too_old"] == 14_400
        assert 7_180 <= summary["sent"] <= 7_200
        assert len(await events_from()) == summary["sent"]

    async def test_a_rate_is_kept(
        self, settings: Settings, events_from: Callable[[], Awaitable[list[Any]]], tmp_path: Path
    ) -> None:
        path = tmp_path / "access.log"
        path.write_bytes(b"\n".join(generate_log(7, 1_000, Shape(NOW_MS))))
        code, summary = await asyncio.to_thread(self.replay, settings, path, "--rate", "500")
        assert code == 0
        assert 1.7 < summary["seconds"] < 4
        assert len(await events_from()) == summary["sent"] == 1_000

    def test_kafka_away_and_a_missing_file_have_codes_of_their_own(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("compose.commands.replay_log._CONNECT_S", 1.0)
        lonely = Settings(kafka_bootstrap=f"127.0.0.1:{free_port()}")
        path = tmp_path / "access.log"
        path.write_bytes(b"\n".join(generate_log(8, 10, Shape(NOW_MS))))
        code, summary = self.replay(lonely, path)
        assert (code, summary["sent"]) == (3, 0)
        assert "cannot be reached" in summary["error"]
        app = typer.Typer()
        app.command()(replay_log)
        missing = CliRunner().invoke(app, [str(tmp_path / "none")], env=lonely.environ())
        assert missing.exit_code == 2
