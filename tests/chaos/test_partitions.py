"""A topic that grows under its worker: records in the new partitions would be left uncounted, so nothing goes on."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from confluent_kafka.admin import AdminClient, NewPartitions

from streams.runtime.worker import EXIT_FAILED
from tests.chaos.driver import PARTITIONS, Run, made_up
from topics.specs import TRAFFIC_EVENTS

pytestmark = pytest.mark.stack


def test_partitions_added_while_a_worker_runs_stop_it(new_run: Callable[..., Run]) -> None:
    run = new_run()
    records = made_up(seed=62, count=4_000)
    run.source.send(records[:2_000])
    worker = run.worker(revive=False)
    run.wait_drained()

    admin = AdminClient({"bootstrap.servers": run.stack.kafka.bootstrap, "log_level": 0})
    added = admin.create_partitions([NewPartitions(TRAFFIC_EVENTS, 2 * PARTITIONS)])
    added[TRAFFIC_EVENTS].result(15)
    run.source.send(records[2_000:])
    assert worker.ended(deadline_s=30) == EXIT_FAILED
    assert "PartitionsChanged" in worker.log()

    again = run.worker(revive=False)
    assert again.ended(deadline_s=30) == EXIT_FAILED
    assert "PartitionsChanged" in again.log()
