"""Producers that know nothing of the partitioner here: whatever partition their records land in, each counts once."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator, Sequence

import pytest
from confluent_kafka import Producer

from compose.local.stack import LocalStack
from tests.chaos.driver import PARTITIONS, Run, chaos_run, made_up
from tests.chaos.truth import Record, Truth
from topics.specs import TRAFFIC_EVENTS

pytestmark = pytest.mark.stack

COUNT = 50_000


@pytest.fixture(scope="module")
def fed(stack: LocalStack, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Run, Truth]]:
    """One worker for all producers, and what it must have counted so far."""
    with chaos_run(stack, tmp_path_factory.mktemp("foreign")) as run:
        worker = run.worker()
        run.until(lambda: worker.owns() == set(range(PARTITIONS)), "the worker owns all partitions")
        yield run, Truth()


@pytest.mark.parametrize(
    ("seed", "partitioner", "keyed"),
    [(1, "murmur2_random", True), (2, "consistent_random", True), (3, "random", False)],
    ids=["murmur2", "crc32", "unkeyed"],
)
def test_every_event_counts_once(fed: tuple[Run, Truth], seed: int, partitioner: str, keyed: bool) -> None:
    run, truth = fed
    records = made_up(seed, COUNT)
    before, started = _outcomes(run), time.monotonic()
    _produce(run.source.bootstrap, records, partitioner, keyed)
    run.wait_drained()
    seconds = time.monotonic() - started
    for record in records:
        truth.add(record)
    run.assert_exact(truth)
    after = _outcomes(run)
    made = {name: after[name] - before[name] for name in ("accepted", "duplicate", "rerouted", "dead")}
    assert made["accepted"] + made["duplicate"] == len(records)
    assert made["dead"] == 0
    share = 0 if partitioner == "murmur2_random" else (PARTITIONS - 1) / PARTITIONS
    assert made["rerouted"] == pytest.approx(share * len(records), rel=0.05)
    print(f"\nforeign producers: {partitioner}, keyed={keyed}: {len(records) / seconds:,.0f} records/s, {made}")
    run.stop_merges()


def _produce(bootstrap: str, records: Sequence[Record], partitioner: str, keyed: bool) -> None:
    failed: list[str] = []
    producer = Producer(
        {
            "bootstrap.servers": bootstrap,
            "partitioner": partitioner,
            "sticky.partitioning.linger.ms": 0,
            "compression.type": "lz4",
            "linger.ms": 5,
            "queue.buffering.max.messages": 1_000_000,
            "log_level": 0,
        }
    )
    for key, value in records:
        producer.produce(
            TRAFFIC_EVENTS,
            value,
            key if keyed else None,
            on_delivery=lambda error, _: failed.append(str(error)) if error else None,
        )
    assert producer.flush(60) == 0
    assert not failed


def _outcomes(run: Run) -> Counter[str]:
    """The worker's own figures, of all partitions and of all that is committed."""
    (worker,) = run.workers
    totals: Counter[str] = Counter()
    for partition in worker.status()["partitions"]:
        for name, value in partition["figures"].items():
            if name.startswith("outcome_"):
                totals[name.removeprefix("outcome_")] += int(value)
    return totals
