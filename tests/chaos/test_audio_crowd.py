"""A crowd of audio sessions under faults: every recording is bit for bit what its client said, gaps and all."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from compose.local.stack import LocalStack
from tests.audiostack import Gateway, Run, audio_run
from tests.chaos.crowd import Crowd

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
