"""SIGKILL before and after every step of a flush: nothing is lost, nothing is counted twice."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest

from streams.runtime.faults import POINTS
from tests.chaos.driver import Run, made_up
from tests.chaos.truth import Truth

pytestmark = pytest.mark.stack

#: Points where a crash leaves different things behind; the other ones lie between two of these.
FEW = ("fold", "raw.after", "send.after", "commit.before", "commit.after", "rollup.before")


def kill_plan(points: tuple[str, ...], seed: int) -> str:
    """One kill at each point, at a passage from the seed: the first few belong to the take-over's own transactions."""
    chance = random.Random(seed)
    return ",".join(f"{point}=kill@{chance.randint(1, 12)}" for point in points)


def _kill_at(run: Run, points: tuple[str, ...], seed: int, count: int, rate_s: float) -> None:
    records = made_up(seed, count)
    worker = run.worker(faults=kill_plan(points, seed))
    with run.feeder(records, rate_s) as feeder:
        run.until(lambda: worker.fired() == worker.planned(), "every planned kill happened", 20.0 * len(points))
        under_load = not feeder.done
        feeder.finish()
    run.wait_drained()
    run.assert_exact(Truth(records))
    run.assert_committed()
    assert worker.codes.count(-9) == len(points)
    run.report("kills", seed=seed, events=count, kills=len(points), under_load=under_load)


def test_kill_at_points_that_leave_different_things_behind(new_run: Callable[..., Run]) -> None:
    _kill_at(new_run(), FEW, seed=1, count=30_000, rate_s=1_000)


@pytest.mark.long
@pytest.mark.parametrize("seed", [11, 12, 13])
def test_kill_at_every_point(new_run: Callable[..., Run], seed: int) -> None:
    _kill_at(new_run(), POINTS, seed=seed, count=200_000, rate_s=2_500)
