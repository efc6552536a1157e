"""Workers that freeze, are given up by the group and by Kafka, and come back: they are fenced and change nothing."""

from __future__ import annotations

import signal
from collections.abc import Callable

import pytest

from streams.runtime.worker import EXIT_FAILED
from tests.chaos.driver import Run, made_up
from tests.chaos.scenarios import PASSAGE, freeze, overtake
from tests.chaos.truth import Truth

pytestmark = pytest.mark.stack

#: Frozen before anything was written, with rows that are not sent yet, before the first and after the last record.
UNSENT_TO_HALF_SENT = ("raw.before", "begin.before", "send.before", "send.after")


def _zombie_wakes(run: Run, point: str) -> None:
    zombie = freeze(run, point)
    heir = overtake(run)
    zombie.signal(signal.SIGCONT)
    assert zombie.ended(deadline_s=30) == EXIT_FAILED, run.told()
    assert heir.codes == [], "the rightful owner was not disturbed"
    heir.drain()


def test_a_zombie_is_fenced_and_nothing_is_counted_twice(new_run: Callable[..., Run], scale: int) -> None:
    run = new_run()
    points = UNSENT_TO_HALF_SENT if scale > 1 else UNSENT_TO_HALF_SENT[::3]
    records = made_up(seed=21, count=12_000 * scale * len(points))
    with run.feeder(records, rate_s=1_000 * scale) as feeder:
        for point in points:
            _zombie_wakes(run, point)
        feeder.finish()
    run.worker()
    run.wait_drained()
    run.assert_exact(Truth(records))
    run.assert_committed()
    run.report("zombies", events=len(records), zombies=len(points))


def test_a_transaction_that_kafka_timed_out_is_given_up(new_run: Callable[..., Run], scale: int) -> None:
    run = new_run(transaction_timeout_s=4.0, session_timeout_s=6.0)
    records = made_up(seed=22, count=20_000 * scale)
    worker = run.worker(faults=f"send.after=stop@{PASSAGE}")
    with run.feeder(records, rate_s=2_000 * scale) as feeder:
        run.until(lambda: worker.frozen, "frozen in a transaction")
        assert run.source.transaction_open()
        run.until(lambda: not run.source.transaction_open(), "Kafka aborted the transaction", 30)
        worker.signal(signal.SIGCONT)
        feeder.finish()
    run.wait_drained()
    run.assert_exact(Truth(records))
    assert worker.codes == [EXIT_FAILED]
    run.report("transaction time-out", events=len(records))
