"""What an operator sees while something is wrong: lag grows and the outage shows, and a partition is told by one worker."""

from __future__ import annotations

import urllib.request
from collections.abc import Callable

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.chaos.driver import Run, made_up
from tests.chaos.workers import Worker
from tests.faults import FaultProxy

pytestmark = pytest.mark.stack

ALL = {"0", "1", "2", "3"}


def _metric(worker: Worker, name: str) -> dict[str, float]:
    """Values by partition; of a metric without partitions under the empty name."""
    with urllib.request.urlopen(f"http://127.0.0.1:{worker.settings.worker_port}/metrics", timeout=2) as page:
        families = text_string_to_metric_families(page.read().decode())
    samples = [sample for family in families for sample in family.samples if sample.name == name]
    return {sample.labels.get("partition", ""): sample.value for sample in samples}


def test_lag_and_outage_show_while_clickhouse_is_away(new_run: Callable[..., Run]) -> None:
    run = new_run()
    with FaultProxy(run.stack.clickhouse.port) as proxy:
        worker = run.worker(clickhouse_url=proxy.url)
        run.until(lambda: len(worker.owns()) == 4, "all partitions are owned")
        run.until(lambda: _metric(worker, "sluiceway_sink_available") == {"": 1.0}, "the sink is seen")
        proxy.refuse()
        with run.feeder(made_up(seed=61, count=2_000), rate_s=5_000) as feeder:
            feeder.finish()
        run.until(lambda: _metric(worker, "sluiceway_sink_available") == {"": 0.0}, "the outage is told")
        run.until(lambda: all(_metric(worker, "sluiceway_commit_lag").get(p) for p in ALL), "the lag is told")
        proxy.serve()
        run.until(lambda: _metric(worker, "sluiceway_sink_available") == {"": 1.0}, "the end is told")
        run.until(lambda: not any(_metric(worker, "sluiceway_commit_lag").values()), "there is no lag")


def test_each_partition_is_told_by_its_owner_alone(new_run: Callable[..., Run]) -> None:
    run = new_run()
    first = run.worker()
    run.until(lambda: _metric_of(first, "sluiceway_commit_lag") == ALL, "one tells all")
    second = run.worker()
    for name in ("sluiceway_commit_lag", "sluiceway_state"):
        run.until(
            lambda name=name: (
                len(_metric_of(first, name)) == len(_metric_of(second, name)) == 2
                and _metric_of(first, name) | _metric_of(second, name) == ALL
            ),
            f"{name}: each tells its own",
        )


def _metric_of(worker: Worker, name: str) -> set[str]:
    try:
        return set(_metric(worker, name))
    except OSError:  # it does not listen yet
        return set()
