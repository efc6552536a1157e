"""Chaos runs that are made more than once: with the product as it is, and with workers that are broken on purpose."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

from compose.local.generate import Shape, generate_events
from streams.traffic.templates import template
from tests.chaos.driver import Run, made_up
from tests.chaos.source import JAVA
from tests.chaos.truth import HOUR_MS, Record, Truth
from tests.chaos.workers import Worker

#: Late enough that the take-over's own transactions, one a partition, are through.
PASSAGE = 15


def kill_at(run: Run, plan: str, seed: int, count: int, rate_s: float, partitioner: str = JAVA) -> None:
    """One worker dies at every point of the plan, while events come in."""
    records = made_up(seed, count)
    worker = run.worker(faults=plan)
    kills = len(worker.planned())
    with run.feeder(records, rate_s, partitioner=partitioner) as feeder:
        run.until(lambda: worker.fired() == worker.planned(), "every planned kill happened", 20.0 * kills)
        under_load = not feeder.done
        feeder.finish()
    run.wait_drained()
    run.assert_exact(Truth(records))
    run.assert_committed()
    assert worker.codes.count(-9) == kills
    run.report("kills", placed_by=partitioner, seed=seed, events=count, kills=kills, under_load=under_load)


def freeze(run: Run, point: str, **how: Any) -> Worker:
    """A worker, alone in the group, that freezes at `point` in the middle of its work."""
    zombie = run.worker(faults=f"{point}=stop@{PASSAGE}", revive=False, **how)
    run.until(lambda: zombie.frozen, f"frozen at {point}")
    return zombie


def overtake(run: Run) -> Worker:
    """A second worker that has taken over every partition of a frozen one and committed more."""
    heir = run.worker()
    run.until(lambda: len(heir.owns()) == run.source.partitions, "another worker took over every partition")
    before = run.source.committed()
    run.until(lambda: all(a > b for a, b in zip(run.source.committed(), before, strict=True)), "it went on")
    return heir


def switch_templates_on(run: Run, scale: int = 1) -> None:
    """A worker dies with a flush that is written and not committed; its successor folds that flush by other rules."""
    records = made_up(seed=61, count=20_000 * scale)
    worker = run.worker(faults="commit.before=kill@20", revive=False)
    with run.feeder(records, rate_s=2_000 * scale) as feeder:
        run.until(lambda: not worker.running, "killed before a commit")
        worker.look()  # its end may or may not have been noted already
        worker.settings = replace(worker.settings, traffic_templates=True)
        worker.revive = True
        worker.start()
        feeder.finish()
    run.wait_drained()
    run.assert_exact(Truth(records), template)
    paths = {key.path for key in run.found().stats}
    assert {template(path) == path for path in paths} == {True, False}, "some were folded before the switch, some after"
    run.report("templates switched on", events=len(records))


def let_hours_pass(run: Run, faults: str = "") -> None:
    """Six days of append times, made up by the producer before the broker's clock is switched on.

    Events are up to 60 h old when they are appended, and a tenth come again at any later time: some while their id is
    remembered, some when they are too late.
    """
    count, hours = 16_000, 150
    end_ms = int(time.time() * 1000)
    shape = Shape(end_ms=end_ms, span_ms=hours * HOUR_MS, duplicates=0.1, disorder_ms=60 * HOUR_MS)
    records = [Record(key, value) for key, value in generate_events(62, count, shape)]
    append_ms = [end_ms - hours * HOUR_MS + i * hours * HOUR_MS // count for i in range(1, count + 1)]
    run.source.set_config("message.timestamp.type", "CreateTime")
    run.source.send(records, append_ms)
    run.source.set_config("message.timestamp.type", "LogAppendTime")
    worker = run.worker(faults=faults)
    run.wait_drained()
    run.assert_exact(Truth(records))
    assert worker.fired() == worker.planned()
    ((late,),) = run.rows("SELECT sum(late) FROM stream_progress")
    assert late > 0, "no duplicate was too late"
    run.report("hours pass", events=count, hours=hours, late=late)
