"""SIGKILL before and after every step of a flush: nothing is lost, nothing is counted twice."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest

from streams.runtime.faults import POINTS
from tests.chaos.driver import ALONE_S, Run
from tests.chaos.scenarios import kill_at
from tests.chaos.source import CRC32

pytestmark = pytest.mark.stack

#: Points where a crash leaves different things behind; the other ones lie between two of these.
FEW = ("raw.after", "send.after", "commit.before", "commit.after", "rollup.before")


def kill_plan(points: tuple[str, ...], seed: int) -> str:
    """One kill at each point, at a passage from the seed: the first few belong to the take-over's own transactions."""
    chance = random.Random(seed)
    return ",".join(f"{point}=kill@{chance.randint(1, 12)}" for point in points)


def test_kill_at_points_that_leave_different_things_behind(new_run: Callable[..., Run]) -> None:
    kill_at(new_run(session_timeout_s=ALONE_S), kill_plan(FEW, seed=1), seed=1, count=30_000, rate_s=1_500)


def test_kill_while_misplaced_events_are_sent_on(new_run: Callable[..., Run]) -> None:
    """Three in four records lie in another partition than their id's: each is sent on once, inside a transaction."""
    plan = kill_plan(("send.after", "commit.before", "commit.after"), seed=3)
    kill_at(new_run(session_timeout_s=ALONE_S), plan, seed=3, count=15_000, rate_s=1_000, partitioner=CRC32)


@pytest.mark.long
@pytest.mark.parametrize("seed", [11, 12, 13])
def test_kill_at_every_point(new_run: Callable[..., Run], seed: int) -> None:
    kill_at(new_run(session_timeout_s=ALONE_S), kill_plan(POINTS, seed), seed=seed, count=200_000, rate_s=2_500)
