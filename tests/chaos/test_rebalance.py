"""Workers come, go and drain under load: a rebalance moves partitions, and no event with them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest

from tests.chaos.driver import PARTITIONS, Run, made_up
from tests.chaos.truth import Truth
from tests.chaos.workers import CHILD, SUPERVISED, Worker

pytestmark = pytest.mark.stack

EVERY = set(range(PARTITIONS))


def _join_and_leave(run: Run, first: Worker, command: Sequence[str]) -> float:
    """A second worker shares the work and is drained; the drain's seconds."""
    second = run.worker(command=command)
    run.until(lambda: bool(first.owns()) and second.owns() == EVERY - first.owns() != set(), "they share the work")
    code, seconds = second.drain()
    assert code == 0, second.log()
    return round(seconds, 1)


def test_a_second_worker_joins_and_leaves_three_times(new_run: Callable[..., Run], scale: int) -> None:
    run = new_run()
    records = made_up(seed=31, count=40_000 * scale)
    first = run.worker()
    drains = []
    with run.feeder(records, rate_s=1_500 * scale) as feeder:
        for command in (SUPERVISED, CHILD, CHILD):
            run.until(lambda: first.owns() == EVERY, "the first worker owns every partition")
            drains.append(_join_and_leave(run, first, command))
        feeder.finish()
    run.wait_drained()
    run.assert_exact(Truth(records))
    run.assert_committed()
    assert first.codes == [], "a rebalance is no reason to give up"
    run.report("joins and leaves", events=len(records), drains_s=drains)


def test_sigterm_under_load_drains_and_commits(new_run: Callable[..., Run], scale: int) -> None:
    run = new_run(flush_interval_s=0.5)
    records = made_up(seed=32, count=60_000 * scale)
    worker = run.worker()
    with run.feeder(records, rate_s=6_000 * scale) as feeder:
        run.until(lambda: worker.owns() == EVERY and min(run.source.committed()) > 500, "under load")
        under_load = not feeder.done
        code, seconds = worker.drain()
        feeder.finish()
    assert (code, under_load) == (0, True), worker.log()
    assert seconds < 10
    # What is in ClickHouse is what the committed offsets say, neither more nor less.
    run.assert_exact(Truth(run.source.records([0] * PARTITIONS, run.source.committed())))
    run.stop_merges()
    run.worker()
    run.wait_drained()
    run.assert_exact(Truth(records))
    run.report("SIGTERM", events=len(records), drain_s=round(seconds, 2))
