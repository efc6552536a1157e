"""Workers as processes: a spare one stays in the group until it is needed. Run as a module, this is a worker."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
from confluent_kafka import Producer
from confluent_kafka.admin import AdminClient

from compose import worker as composed
from compose.local.process import free_port
from compose.local.stack import LocalStack
from compose.logs import set_up_logs
from compose.settings import load
from tests.chaos.source import GROUP, Source
from tests.chaos.workers import Worker
from tests.traffic import event
from tests.warehouse import new_database
from topics.specs import TRAFFIC_EVENTS

pytestmark = pytest.mark.stack

POLL_TIMEOUT_S = 3.0
DEADLINE_S = 60.0


@pytest.fixture
def lone_partition(stack: LocalStack) -> Iterator[Source]:
    """An empty source topic with one partition."""
    source = Source(stack.kafka.bootstrap, 1)
    source.clear()
    source.create()
    yield source
    source.clear()
    source.close()


@pytest.fixture
def new_worker(stack: LocalStack, tmp_path: Path) -> Iterator[Callable[[], Worker]]:
    """Starts workers that leave the group when they have not polled for `POLL_TIMEOUT_S`."""
    settings = stack.settings(partitions=1, session_timeout_s=2.0, clickhouse_database=new_database())
    started: list[Worker] = []

    def start() -> Worker:
        name = f"worker-{len(started)}"
        own = replace(settings, data_dir=tmp_path / name, worker_port=free_port())
        started.append(Worker(name, own, ("tests.integration.test_runtime_worker",), revive=False))
        return started[-1].start()

    yield start
    for worker in started:
        worker.kill()


def until(condition: Callable[[], bool], what: str) -> None:
    """Poll until `condition` holds."""
    started = time.monotonic()
    while not condition():
        assert time.monotonic() - started < DEADLINE_S, what
        time.sleep(0.1)


def members(stack: LocalStack) -> int:
    """Members of the stream's group."""
    # A client that is dropped while a question is open never answers it: it is held until the answer is there.
    admin = AdminClient({"bootstrap.servers": stack.kafka.bootstrap})
    return len(admin.describe_consumer_groups([GROUP])[GROUP].result(DEADLINE_S).members)


def test_a_spare_worker_is_there_when_it_is_needed(
    stack: LocalStack, lone_partition: Source, new_worker: Callable[[], Worker]
) -> None:
    owner = new_worker()
    until(lambda: owner.owns() == {0}, "the first worker owns the partition")
    spare = new_worker()
    until(lambda: members(stack) == 2, "a second worker joined")
    waited = time.monotonic() + 3 * POLL_TIMEOUT_S
    until(lambda: members(stack) < 2 or time.monotonic() > waited, "a while passes")
    assert members(stack) == 2, spare.log()
    holder, other = (owner, spare) if owner.owns() else (spare, owner)
    holder.kill()
    until(lambda: other.owns() == {0}, "the spare worker took over")


async def test_an_open_transaction_keeps_the_partition_from_counting_as_read(
    stack: LocalStack, lone_partition: Source, new_worker: Callable[[], Worker]
) -> None:
    worker = new_worker()
    until(lambda: worker.owns() == {0}, "the worker owns the partition")
    sink = composed.clickhouse(worker.settings)
    sql = f"SELECT current, end_offset FROM {sink.qualified('stream_progress')} WHERE stream = 'traffic'"

    async def shows(current: bool, end: int) -> None:
        async with asyncio.timeout(DEADLINE_S):
            while not any(tuple(row) == (current, end) for row in await sink.query(sql)):  # noqa: ASYNC110 - a server's state
                await asyncio.sleep(0.1)

    producer = Producer({"bootstrap.servers": stack.kafka.bootstrap, "transactional.id": "held-open", "log_level": 0})
    try:
        await shows(current=True, end=0)
        producer.init_transactions(DEADLINE_S)
        producer.begin_transaction()
        producer.produce(TRAFFIC_EVENTS, event("held"), b"held")
        producer.flush(DEADLINE_S)
        await shows(current=False, end=1)
        producer.commit_transaction(DEADLINE_S)
        await shows(current=True, end=2)
    finally:
        await sink.close()


def main() -> None:
    """A traffic worker with a short patience for members that do not poll."""
    composed.FetchLimits = partial(composed.FetchLimits, poll_timeout_ms=int(POLL_TIMEOUT_S * 1000))  # type: ignore
    settings = load()
    set_up_logs(settings)
    composed.run_stream("traffic", settings)


if __name__ == "__main__":
    main()
