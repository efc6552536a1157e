"""The source topic is made anew, or loses its head: every record of the new one counts once, and a loss is not skipped."""

from __future__ import annotations

import signal
from collections.abc import Callable

import pytest

from streams.runtime.worker import EXIT_FAILED
from tests.chaos.driver import PARTITIONS, Run, made_up
from tests.chaos.truth import Record, Truth

pytestmark = pytest.mark.stack


def _mixed(new: list[Record], old: list[Record]) -> list[Record]:
    """New records with every tenth of the old ones among them."""
    return [record for pair in zip(new, old[::10] + [None] * len(new), strict=False) for record in pair if record]


def test_a_topic_made_anew_while_read_and_while_not(new_run: Callable[..., Run], scale: int) -> None:
    run = new_run()
    first = made_up(seed=51, count=10_000 * scale)
    second = _mixed(made_up(seed=52, count=6_000 * scale), first)
    third = _mixed(made_up(seed=53, count=20_000 * scale), first + second)
    run.source.send(first)
    worker = run.worker()
    run.wait_drained(epoch=1)

    run.source.make_anew()
    run.source.send(second)
    run.wait_drained(epoch=2)
    run.assert_exact(Truth(first + second))
    run.stop_merges()

    assert worker.drain()[0] == 0
    cursor = run.source.ends()
    run.source.make_anew()
    run.source.send(third)
    assert all(end > old for end, old in zip(run.source.ends(), cursor, strict=True)), "longer than the old cursor"
    run.worker()
    run.wait_drained(epoch=3)
    run.assert_exact(Truth(first + second + third))
    run.report("topic made anew", events=len(first + second + third), epochs=3)


def test_a_topic_made_anew_under_a_worker_that_reads_on_at_its_old_position(
    new_run: Callable[..., Run], scale: int
) -> None:
    """The frozen worker finds the new topic longer than its cursor, and ids beyond it that also lie before it."""
    run = new_run(session_timeout_s=4.0)
    first, second = made_up(seed=54, count=4_000 * scale), made_up(seed=55, count=8_000 * scale)
    run.source.send(first)
    worker = run.worker()
    run.wait_drained(epoch=1)
    worker.signal(signal.SIGSTOP)
    run.source.make_anew()
    run.source.send([*second, *second])
    worker.signal(signal.SIGCONT)
    run.wait_drained(epoch=2)
    run.assert_exact(Truth([*first, *second]))
    assert worker.codes and set(worker.codes) == {EXIT_FAILED}
    run.report("topic made anew and longer", events=len(first) + 2 * len(second), epochs=2)


def test_a_log_cut_off_past_the_cursor_is_not_read_on(new_run: Callable[..., Run]) -> None:
    run = new_run()
    before, after = made_up(seed=56, count=6_000), made_up(seed=57, count=12_000)
    run.source.send(before)
    assert run.worker() and run.wait_drained()
    assert run.workers[0].drain()[0] == 0
    cursor = run.source.committed()
    run.source.send(after)
    cut = max(cursor) + 1_000
    run.source.delete_below(cut)

    refusing = run.worker(revive=False)
    assert refusing.ended(deadline_s=30) == EXIT_FAILED
    assert "LogLost" in refusing.log()
    assert f"the log starts at {cut}: offsets" in refusing.log()
    assert "SLUICEWAY_ACCEPT_LOSS=true" in refusing.log()
    assert run.source.committed() == cursor, "nothing was skipped"

    run.worker(accept_loss=True)
    run.wait_drained(epoch=2)
    kept = run.source.records([cut] * PARTITIONS, run.source.ends())
    run.assert_exact(Truth([*before, *kept]))
    run.report("log cut off", events=len(before) + len(after), lost=len(after) - len(kept))
