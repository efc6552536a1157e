"""Audio under faults: sessions of 45 minutes, and an object store that is away."""

from __future__ import annotations

import time
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from compose.local.stack import LocalStack
from tests.audiostack import audio_run, new_session, noise
from tests.chaos.crowd import Crowd
from topics.audio import Chunk, Close, Tier
from topics.audio_events import session_prefix

pytestmark = [pytest.mark.stack, pytest.mark.slow]


@pytest.mark.long
@pytest.mark.parametrize("tier", Tier)
def test_a_session_of_45_minutes_sent_fast_and_killed_twice(stack: LocalStack, tmp_path: Path, tier: Tier) -> None:
    _talk(stack, tmp_path / "a", tier, minutes=45, kills=(7_000, 14_000))


@pytest.mark.long
def test_a_session_takes_no_more_memory_for_being_longer(stack: LocalStack, tmp_path: Path) -> None:
    usual, long = (_talk(stack, tmp_path / str(m), Tier.STANDARD, minutes=m) for m in (45, 135))
    assert abs(long - usual) < 50 << 20


def _talk(stack: LocalStack, folder: Path, tier: Tier, minutes: int, kills: tuple[int, ...] = ()) -> int:
    """A session sent fast, the worker killed at these seqs, its recording bit for bit; returns the workers' peak RSS."""
    how: dict[str, Any] = {
        "audio_upload_after_s": 60.0,
        "audio_reorder_s": 2.0,
        "audio_silence_s": 30.0,
        "audio_session_idle_s": 600.0,
    }
    with audio_run(stack, folder, **how, audio_window_s=120.0, audio_memory_mb=64, audio_part_mb=8) as run:
        session, started, peak = new_session(0, tier=tier), time.monotonic(), 0

        def look() -> None:
            nonlocal peak
            run.look()
            peak = max(peak, run.worker.rss_bytes)

        def follows(seq: int) -> bool:
            return (run.state(session).get("stored_seq") or 0) > seq

        def closed() -> bool:
            look()
            return run.state(session).get("status") == "closed"

        run.talker.say(session.opened)
        for seq in range(minutes * 60 * 1000 // 128):
            session.chunks[seq] = noise(0, seq, session.opened)
            run.talker.say(Chunk(session.id, seq, 0, None, session.chunks[seq]))
            if seq in kills:
                run.talker.flush()
                run.until(partial(follows, seq - 3_000), "it follows")
                run.worker.signal(9)
            if seq % 500 == 0:
                run.talker.flush()
                look()
        run.talker.say(Close(session.id))
        run.talker.flush()
        run.until(closed, "it is closed", 180)
        seconds = time.monotonic() - started
        run.until(lambda: not run.objects(f"{session_prefix(session.id)}segments/"), "segments are removed")
        manifest = run.assert_recorded(session, [])
        assert manifest.duration_ms == len(session.chunks) * 128
        print(f"chaos: audio: {tier=!s}, {minutes=}, {seconds=:.0f}, peak_mb={peak >> 20}, bytes={manifest.size_bytes}")
        assert peak < 450 << 20
        return peak


def test_an_object_store_that_is_away_costs_time_and_nothing_else(stack: LocalStack, tmp_path: Path) -> None:
    # A window of 6 s is 192 kB: some fit a megabyte, what they say in 20 s does not.
    with audio_run(stack, tmp_path, audio_memory_mb=1, audio_premium_window_s=6.0, audio_attempt_s=2.0) as run:
        crowd = Crowd(run, 4, 200, seed=32)
        crowd.talk(0.4, {10: stack.s3.kill})
        figures = [partition["figures"] for partition in run.worker.status()["partitions"]]
        assert max(f["worker_dropped_segments"] for f in figures) > 0
        assert max(f["worker_held_bytes"] for f in figures) <= 1 << 20
        stack.s3.start()
        crowd.settle(180)
        crowd.assert_exact()
        assert run.worker.codes == []
