"""Everything at once, from a seed: workers die, freeze, come and go, Kafka crashes and ClickHouse goes away and cuts."""

from __future__ import annotations

import random
import signal
import time
from collections import Counter
from collections.abc import Callable

import pytest

from tests.chaos.driver import Run, made_up
from tests.chaos.source import CRC32
from tests.chaos.truth import Truth
from tests.chaos.workers import Worker
from tests.faults import FaultProxy

pytestmark = [pytest.mark.stack, pytest.mark.long]

WORKERS = 3
STEPS = 40


class Storm:
    """One run's accidents, in an order from the seed. A frozen worker wakes up some steps later."""

    def __init__(self, run: Run, proxy: FaultProxy, seed: int) -> None:
        self._run = run
        self._proxy = proxy
        self._chance = random.Random(seed)
        self.happened: Counter[str] = Counter()

    def step(self) -> None:
        """One accident, then a pause in which the stream may or may not get anywhere."""
        accidents: dict[Callable[[Worker], None], int] = {
            self._kill: 5,
            self._freeze: 5,
            self._wake: 6,
            self._drain: 3,
            self._lose_clickhouse: 2,
            self._cut_answers: 3,
            self._crash_kafka: 1,
        }
        (accident,) = self._chance.choices(list(accidents), list(accidents.values()))
        self.happened[accident.__name__.strip("_")] += 1
        accident(self._chance.choice(self._run.workers))
        self._pause(self._chance.uniform(0.1, 3.0))

    def end(self) -> None:
        """All that was taken away comes back."""
        self._proxy.serve()
        for worker in self._run.workers:
            self._wake(worker)

    def _pause(self, seconds: float) -> None:
        over = time.monotonic() + seconds
        self._run.until(lambda: time.monotonic() > over, "the pause is over")

    def _kill(self, worker: Worker) -> None:
        if worker.running:
            worker.signal(signal.SIGKILL)

    def _freeze(self, worker: Worker) -> None:
        if worker.running:
            worker.signal(signal.SIGSTOP)

    def _wake(self, worker: Worker) -> None:
        if worker.running:
            worker.signal(signal.SIGCONT)

    def _drain(self, worker: Worker) -> None:
        if worker.running:
            worker.signal(signal.SIGTERM)

    def _lose_clickhouse(self, worker: Worker) -> None:
        self._proxy.refuse()
        self._pause(self._chance.uniform(0.1, 4.0))
        self._proxy.serve()

    def _cut_answers(self, worker: Worker) -> None:
        self._proxy.cut_answers(times=self._chance.randint(1, 5))

    def _crash_kafka(self, worker: Worker) -> None:
        self._run.stack.kafka.kill()
        self._run.stack.kafka.start()


@pytest.mark.parametrize("seed", range(81, 85))
def test_a_storm_loses_nothing_and_counts_nothing_twice(new_run: Callable[..., Run], seed: int) -> None:
    # Of 50,000 ids a partition most are spilled; flushes are small enough for many to be under way.
    run = new_run(dedup_memory_mb=1, flush_rows=2_000)
    records = made_up(seed, count=200_000)
    # Every other seed has producers that place keys their own way.
    how = {"partitioner": CRC32} if seed % 2 else {}
    with FaultProxy(run.stack.clickhouse.port) as proxy:
        for _ in range(WORKERS):
            run.worker(clickhouse_url=proxy.url)
        storm = Storm(run, proxy, seed)
        with run.feeder(records, rate_s=2_500, **how) as feeder:
            for _ in range(STEPS):
                storm.step()
            storm.end()
            feeder.finish()
        run.wait_drained()
        run.assert_exact(Truth(records))
        run.assert_committed()
    run.report("storm", seed=seed, events=len(records), **storm.happened)
