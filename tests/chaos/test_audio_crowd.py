"""A crowd of audio sessions under faults: every recording is bit for bit what its client said, gaps and all."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from compose.local.stack import LocalStack
from streams.runtime.worker import EXIT_FAILED
from tests.audiostack import Gateway, Run, audio_run
from tests.chaos.crowd import Crowd
from tests.r2proxy import R2Proxy

pytestmark = [pytest.mark.stack, pytest.mark.slow]

#: A worker dies where a chunk is folded, a segment and a recording are put, and a transaction is sent and committed: at
#: which passage first.
KILLS = {
    "fold": 6,
    "put.before": 2,
    "put.after": 3,
    "send.after": 9,
    "commit.before": 10,
    "commit.after": 8,
    "complete.before": 1,
    "complete.after": 2,
}


def _plan(times: int) -> str:
    """Each kill so many times."""
    return ",".join(f"{point}=kill@{first + more}" for more in range(times) for point, first in KILLS.items())


@contextmanager
def _gateways(run: Run, count: int) -> Iterator[list[Gateway]]:
    """Gateways that start again when they die."""
    gateways = [Gateway(run, f"gateway-{i}") for i in range(count)]
    try:
        for gateway in gateways:
            gateway.process.revive = True
            gateway.start()
        yield gateways
    finally:
        for gateway in gateways:
            gateway.stop()


def _crowd_run(stack: LocalStack, folder: Path, **settings: Any) -> Any:
    return audio_run(stack, folder, **{"audio_session_idle_s": 60.0, "audio_premium_window_s": 15.0, **settings})


@pytest.mark.parametrize(
    ("count", "chunks", "pause_s", "times"),
    [pytest.param(7, 120, 0.5, 1, id="short"), pytest.param(48, 400, 1.0, 4, id="full", marks=pytest.mark.long)],
)
def test_a_kill_at_any_point_changes_no_recording(
    stack: LocalStack, tmp_path: Path, count: int, chunks: int, pause_s: float, times: int
) -> None:
    with _crowd_run(stack, tmp_path, faults=_plan(times)) as run, _gateways(run, 2 if times > 1 else 1) as gateways:
        crowd = Crowd(run, count, chunks, seed=31, gateways=gateways)
        crowd.talk(pause_s, {20: lambda: gateways[0].process.signal(9)})
        crowd.settle(180)
        figures = crowd.assert_exact()
        assert run.worker.fired() == run.worker.planned()
        assert run.worker.codes == [-9] * len(KILLS) * times
        print(f"chaos: audio kills: {figures}, kills={len(run.worker.codes) + len(gateways[0].process.codes)}")


STORE_CALLS = ("PutObject", "HeadObject", "GetObject", "DeleteObjects", "CreateMultipartUpload", "UploadPart")
ALWAYS = 1 << 30
SEGMENTS_OF_8_S = {"audio_upload_after_s": 8.0, "audio_window_s": 20.0, "audio_premium_window_s": 20.0}


@pytest.mark.long
def test_an_object_store_that_refuses_for_a_minute_and_then_is_slow(stack: LocalStack, tmp_path: Path) -> None:
    to = urlsplit(stack.settings().s3_endpoint)
    assert to.port is not None
    proxy = R2Proxy(to.port)
    where = {"store_url": to.geturl(), "s3_endpoint": proxy.url}
    with (
        proxy,
        _crowd_run(stack, tmp_path, **where, **SEGMENTS_OF_8_S, audio_memory_mb=40) as run,
    ):
        held: list[float] = []
        dropped: list[float] = []

        def refuse() -> None:
            for operation in STORE_CALLS:
                proxy.refuse(operation, ALWAYS)

        def slow() -> None:
            look()
            proxy.heal()
            for operation in STORE_CALLS:
                proxy.slow(operation, 2.0, ALWAYS)

        def look() -> None:
            figures = [partition["figures"] for partition in run.worker.status()["partitions"]]
            dropped.append(max(f["worker_dropped_segments"] for f in figures))
            held.append(max(f["worker_held_bytes"] for f in figures))

        crowd = Crowd(run, 50, 540, seed=33)
        crowd.talk(1.0, {10: refuse, 40: look, 70: slow, 100: look, 130: proxy.heal})
        crowd.settle(180)
        figures = crowd.assert_exact()
        assert max(held) <= 40 << 20 and dropped[-1] > 0
        assert run.worker.codes == []
        print(
            f"chaos: audio store refusing and slow: {figures}, held_mb={max(held) / 1e6:.1f}, dropped={dropped[-1]:.0f}"
        )


@pytest.mark.long
def test_workers_that_join_and_leave_change_no_recording(stack: LocalStack, tmp_path: Path) -> None:
    with _crowd_run(stack, tmp_path) as run, _gateways(run, 2) as gateways:
        owned: list[list[set[int]]] = []

        def note() -> None:
            owned.append([worker.owns() for worker in run.workers])

        def leave(number: int) -> None:
            note()
            run.workers[number].revive = False
            run.workers[number].leave()

        crowd = Crowd(run, 48, 400, seed=34, gateways=gateways)
        accidents = {
            10: run.join,
            25: lambda: leave(0),
            40: run.join,
            55: lambda: run.workers[1].signal(signal.SIGKILL),
            70: lambda: leave(1),
            85: run.join,
            95: note,
        }
        crowd.talk(1.0, accidents)
        crowd.settle(180)
        figures = crowd.assert_exact()
        held = [[len(partitions) for partitions in each] for each in owned]
        assert held[0] == [1, 1] and held[1] == [0, 1, 1], held
        assert run.workers[0].codes == [0] and run.workers[1].codes == [-signal.SIGKILL, 0]
        print(f"chaos: audio workers come and go: {figures}, partitions={held}")


@pytest.mark.long
def test_a_stalled_session_holds_nobody_up(stack: LocalStack, tmp_path: Path) -> None:
    times = {"audio_upload_after_s": 60.0, "audio_silence_s": 30.0, "audio_reorder_s": 2.0, "audio_window_s": 120.0}
    with _crowd_run(stack, tmp_path, **times, audio_session_idle_s=180.0) as run:
        crowd = Crowd(run, 50, 1_200, seed=35)
        stalled = crowd.clients[0]
        # It says two blocks, and the rest when all others are done.
        stalled.blocks = [*stalled.blocks[:2], *[[]] * 296, stalled.blocks[2]]
        watch = _Watch(run, crowd)
        crowd.talk(0.512, dict.fromkeys(range(0, 300, 5), watch.look))
        pinned_s, late_s = watch.pinned_s(), watch.late_s()
        crowd.settle(240)
        figures = crowd.assert_exact()
        print(f"chaos: audio stalled: {figures}, {pinned_s=:.1f}, {late_s=:.1f}")
        assert pinned_s < 75 and late_s < 75


@dataclass(frozen=True)
class _Look:
    """At one moment: each partition's end and commit, and how many chunks each session has said and has stored."""

    at_s: float
    ends: list[int]
    committed: list[int]
    said: dict[str, int]
    stored: dict[str, int]


@dataclass
class _Watch:
    """Looks at a run again and again: how far behind its commits are, and what is stored of each session."""

    run: Run
    crowd: Crowd
    looks: list[_Look] = field(default_factory=list)

    def look(self) -> None:
        """Note where all is."""
        said = {client.id: len(client.chunks) for client in self.crowd.clients}
        sql = "SELECT session_id, sum(last_seq - first_seq + 1) FROM audio_segments GROUP BY session_id"
        stored = {str(name): int(count) for name, count in self.run.rows(sql)}
        self.looks.append(_Look(time.monotonic(), self.run.ends(), self.run.committed(), said, stored))

    def pinned_s(self) -> float:
        """The longest that a partition's commits were behind what it had."""
        return self._behind(lambda then, now: all(c >= e for e, c in zip(then.ends, now.committed, strict=True)))

    def late_s(self) -> float:
        """The longest that a chunk waited to be stored."""
        return self._behind(lambda then, now: all(now.stored.get(name, 0) >= said for name, said in then.said.items()))

    def _behind(self, done: Callable[[_Look, _Look], bool]) -> float:
        first = self.looks[0].at_s
        return max(
            now.at_s - max((then.at_s for then in self.looks if done(then, now)), default=first) for now in self.looks
        )


@pytest.mark.long
@pytest.mark.parametrize("moment", ["while sessions run", "after all"])
@pytest.mark.parametrize("point", ["put.before", "complete.before"])
def test_a_zombie_stores_nothing_twice(stack: LocalStack, tmp_path: Path, point: str, moment: str) -> None:
    with _crowd_run(stack, tmp_path) as run:
        zombie = run.join(faults=f"{point}=stop@3")
        run.until(lambda: len(zombie.owns()) == 1, "the second worker has a partition")
        crowd = Crowd(run, 24, 240, seed=36)

        def wake() -> None:
            run.until(lambda: zombie.frozen and len(run.worker.owns()) == 2, "the first has taken over")
            woken = zombie.pid
            zombie.signal(signal.SIGCONT)
            # It is fenced, and another process begins in its place; what it puts until then is for the sweep.
            run.until(lambda: zombie.pid != woken, "the zombie has ended")
            assert zombie.codes[-1] == EXIT_FAILED

        crowd.talk(0.5, {50: wake} if moment == "while sessions run" else {})
        if moment == "after all":
            crowd.settle(120)
            crowd.assert_exact()
            wake()
        crowd.settle(120)
        figures, codes = crowd.assert_exact(), [worker.codes for worker in run.workers]
        print(f"chaos: audio zombie: {point=}, {moment=}, {figures}, {codes=}")
