"""The chaos runs are worth something: each rule that is broken on purpose makes the comparison fail.

Every scenario but the last is also run with the product as it is, where it must pass.
"""

from __future__ import annotations

import signal
from collections.abc import Callable

import pytest

from compose.settings import SettingError, Settings
from tests.chaos import sabotage, scenarios
from tests.chaos.driver import Run, made_up
from tests.chaos.truth import Truth

pytestmark = pytest.mark.stack

NOTICED = r"\d+ differences with merges stopped"


def _older(offsets: list[int], than: list[int]) -> bool:
    return any(mine < its for mine, its in zip(offsets, than, strict=True))


@pytest.mark.parametrize("kind", [sabotage.ROWS_AFTER_COMMIT, sabotage.CURSOR_BEFORE_STATE])
def test_another_order_of_flush_loses_events(new_run: Callable[..., Run], kind: str) -> None:
    run = new_run(command=sabotage.command(kind))
    with pytest.raises(AssertionError, match=NOTICED):
        scenarios.kill_at(run, f"commit.after=kill@{scenarios.PASSAGE}", seed=71, count=10_000, rate_s=1_500)


def test_rollups_before_the_commit_count_twice(new_run: Callable[..., Run]) -> None:
    run = new_run(command=sabotage.command(sabotage.ROLLUPS_BEFORE_COMMIT))
    with pytest.raises(AssertionError, match=NOTICED):
        scenarios.switch_templates_on(run)


def test_a_retry_from_memory_after_a_fence_counts_twice(new_run: Callable[..., Run]) -> None:
    # Kafka must not time the transaction out before the zombie wakes.
    run = new_run(transaction_timeout_s=60.0)
    # Enough to come after the zombie's commit: what is counted twice shows where a key is written again.
    records = made_up(seed=72, count=60_000)
    with run.feeder(records, rate_s=1_000) as feeder:
        zombie = scenarios.freeze(run, "send.before", command=sabotage.command(sabotage.RETRY_AFTER_FENCE))
        scenarios.overtake(run)
        newer = run.source.committed()
        zombie.signal(signal.SIGCONT)
        run.until(lambda: _older(run.source.committed(), newer), "the zombie committed older state over newer")
        zombie.kill()
        feeder.finish()
    run.wait_drained()
    with pytest.raises(AssertionError, match=NOTICED):
        run.assert_exact(Truth(records))


def test_a_memory_shorter_than_lateness_counts_twice(new_run: Callable[..., Run]) -> None:
    with pytest.raises(SettingError):
        Settings(traffic_dedup_h=1)
    run = new_run(command=sabotage.command(sabotage.SHORT_MEMORY))
    with pytest.raises(AssertionError, match=NOTICED):
        scenarios.let_hours_pass(run)
