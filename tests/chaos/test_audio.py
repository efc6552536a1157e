"""Audio under faults: a worker killed at every point between a chunk and its recording, and an object store that is away."""

from __future__ import annotations

import random
import time
from pathlib import Path

import pytest

from compose.local.stack import LocalStack
from tests.audiostack import Run, Session, audio_run, new_session, noise
from topics import specs
from topics.audio import Chunk, Close, Store, Tier
from topics.audio_events import SegmentStored, SessionClosed, session_prefix

pytestmark = [pytest.mark.stack, pytest.mark.slow]

FAULTS = (
    "fold=kill@6",
    "put.before=kill@2",
    "put.after=kill@3",
    "send.after=kill@9",
    "commit.before=kill@10",
    "commit.after=kill@8",
    "complete.before=kill@1",
    "complete.after=kill@2",
)


def feed(run: Run, sessions: list[Session], seqs: range, pause_s: float, rng: random.Random) -> None:
    """Chunks of all sessions in small disorder, a tenth of them twice."""
    for at in range(0, len(seqs), 4):
        for i, session in enumerate(sessions):
            block = list(seqs[at : at + 4])
            rng.shuffle(block)
            for seq in block:
                session.chunks[seq] = noise(i, seq, session.opened)
                for _ in range(1 + (rng.random() < 0.1)):
                    run.talker.say(Chunk(session.id, seq, 0, None, session.chunks[seq]))
        run.talker.flush()
        run.worker.look()
        time.sleep(pause_s)


def close_and_check(run: Run, sessions: list[Session]) -> None:
    """Every session ends in a recording that is exact, told once, with nothing left beside it."""
    for session in sessions:
        run.talker.say(Close(session.id))
    run.talker.flush()
    run.until(lambda: all(run.state(s).get("status") == "closed" for s in sessions), "all are closed", 180)
    run.until(
        lambda: all(not run.objects(f"{session_prefix(s.id)}segments/") for s in sessions), "segments are removed"
    )
    events = run.events()
    for session in sessions:
        run.assert_recorded(session, [])
        spans = [
            (e.first_seq, e.last_seq) for e in events if isinstance(e, SegmentStored) and e.session_id == session.id
        ]
        assert sum(last - first + 1 for first, last in spans) == len(session.chunks), "no segment twice, none missing"
        assert len([e for e in events if isinstance(e, SessionClosed) and e.session_id == session.id]) == 1
    assert run.read(specs.AUDIO_DEADLETTER) == []


def test_a_kill_at_any_point_changes_no_recording(stack: LocalStack, tmp_path: Path) -> None:
    with audio_run(stack, tmp_path, faults=",".join(FAULTS), audio_session_idle_s=120.0) as run:
        sessions = [new_session(i, store=Store.WAV if i % 2 else Store.FLAC) for i in range(6)]
        for session in sessions:
            run.talker.say(session.opened)
        feed(run, sessions, range(240), 0.3, random.Random(1))
        close_and_check(run, sessions)
        assert run.worker.fired() == run.worker.planned()
        assert run.worker.codes == [-9] * len(FAULTS)
        print(f"chaos: audio kills: sessions={len(sessions)}, kills={len(FAULTS)}, differences=0")


@pytest.mark.long
@pytest.mark.parametrize("tier", Tier)
def test_a_session_of_45_minutes_sent_fast_and_killed_twice(stack: LocalStack, tmp_path: Path, tier: Tier) -> None:
    how = {"audio_upload_after_s": 60.0, "audio_reorder_s": 2.0, "audio_silence_s": 30.0, "audio_session_idle_s": 600.0}
    with audio_run(stack, tmp_path, **how, audio_window_s=120.0, audio_memory_mb=64, audio_part_mb=8) as run:
        session, started, peak = new_session(0, tier=tier), time.monotonic(), 0
        run.talker.say(session.opened)
        for seq in range(45 * 60 * 1000 // 128):
            session.chunks[seq] = noise(0, seq, session.opened)
            run.talker.say(Chunk(session.id, seq, 0, None, session.chunks[seq]))
            if seq in (7_000, 14_000):
                run.talker.flush()
                run.until(lambda seq=seq: (run.state(session).get("stored_seq") or 0) > seq - 3_000, "it follows")
                run.worker.signal(9)
            if seq % 500 == 0:
                run.talker.flush()
                run.worker.look()
                peak = max(peak, run.worker.rss_bytes)
        run.talker.say(Close(session.id))
        run.talker.flush()
        run.until(lambda: run.state(session).get("status") == "closed", "it is closed", 180)
        peak = max(peak, run.worker.rss_bytes)
        seconds = time.monotonic() - started
        run.until(lambda: not run.objects(f"{session_prefix(session.id)}segments/"), "segments are removed")
        manifest = run.assert_recorded(session, [])
        assert manifest.duration_ms == len(session.chunks) * 128
        print(
            f"chaos: audio 45 minutes: tier={tier}, {seconds=:.0f}, peak_mb={peak >> 20}, bytes={manifest.size_bytes}"
        )
        assert peak < 450 << 20


def test_an_object_store_that_is_away_costs_time_and_nothing_else(stack: LocalStack, tmp_path: Path) -> None:
    # A window of 6 s is 192 kB: both fit a megabyte, what they say in 20 s does not.
    with audio_run(stack, tmp_path, audio_memory_mb=1, audio_attempt_s=2.0, audio_session_idle_s=120.0) as run:
        sessions = [new_session(i) for i in range(4)]
        for session in sessions:
            run.talker.say(session.opened)
        feed(run, sessions, range(40), 0.1, random.Random(2))
        stack.s3.kill()
        feed(run, sessions, range(40, 200), 0.4, random.Random(3))
        figures = [partition["figures"] for partition in run.worker.status()["partitions"]]
        assert max(f["worker_dropped_segments"] for f in figures) > 0
        assert max(f["worker_held_bytes"] for f in figures) <= 1 << 20
        stack.s3.start()
        close_and_check(run, sessions)
        assert run.worker.codes == []
