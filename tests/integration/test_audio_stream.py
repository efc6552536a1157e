"""Audio through the real stack: what producers write to Kafka comes out of the object store bit for bit."""

from __future__ import annotations

import asyncio
import hashlib
import io
import json
import os
import random
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import aiohttp
import pytest
import soundfile
from confluent_kafka import KafkaError

from compose.figures import total
from compose.local.stack import LocalStack
from streams.audio.held import CHUNK_OVERHEAD
from tests.audiostack import PARTITIONS, Gateway, Run, Session, audio_run, new_session, noise
from topics import specs
from topics.audio import MAX_CHUNK_BYTES, Chunk, Close, Store
from topics.audio_events import SegmentStored, SessionClosed, SessionRefused, session_prefix
from topics.audio_socket import OpenMessage, encode_message

pytestmark = pytest.mark.stack


@pytest.fixture
def new_run(stack: LocalStack, tmp_path: Path) -> Iterator[Callable[..., Run]]:
    """Makes the test's run; keyword arguments are settings."""
    with ExitStack() as ends:
        yield lambda **settings: ends.enter_context(audio_run(stack, tmp_path, **settings))


def test_sessions_are_recorded_bit_for_bit_through_a_kill(new_run: Callable[..., Run]) -> None:
    run = new_run()
    rng = random.Random(4)
    sessions = [new_session(i, store=Store.WAV if i == 1 else Store.FLAC) for i in range(4)]
    for session in sessions:
        run.talker.say(session.opened)
    last = 120
    seqs = [seq for seq in range(last) if seq not in range(50, 54)]
    for at in range(0, len(seqs), 4):
        for i, session in enumerate(sessions):
            block = seqs[at : at + 4]
            rng.shuffle(block)
            for seq in block:
                session.chunks[seq] = noise(i, seq, session.opened)
                for _ in range(1 + (rng.random() < 0.1)):
                    run.talker.say(Chunk(session.id, seq, 0, None, session.chunks[seq]))
        time.sleep(0.1)
        if at == 60:
            run.talker.flush()
            run.until(lambda: any(isinstance(e, SegmentStored) for e in run.events()), "a segment is stored")
            run.worker.signal(9)
        run.worker.look()
    window = sessions[0]
    run.talker.flush()
    run.until(lambda: run.state(window).get("last_seq") == last - 1, "all is folded")
    state = run.state(window)
    assert (state["status"], state["next_seq"], state["gaps"]) == ("open", 50, [[50, 53]])
    code, body = run.ask(f"/audio/{window.id}/window")
    assert code == 200 and body[:4] == b"RIFF"
    held, _ = soundfile.read(io.BytesIO(body), dtype="int16")
    assert len(held) and window.pcm.endswith(held.tobytes())
    for session in sessions[:3]:
        run.talker.say(Close(session.id))
    run.talker.flush()
    run.until(lambda: all(run.state(s).get("status") == "closed" for s in sessions), "all sessions are closed")
    run.until(
        lambda: all(not run.objects(f"{session_prefix(s.id)}segments/") for s in sessions), "segments are removed"
    )
    manifests = [run.assert_recorded(session, [[50, 53]]) for session in sessions]
    assert [m.closed_by.value for m in manifests] == ["client"] * 3 + ["silence"]
    assert manifests[1].recording.endswith(".wav")

    events = run.events()
    for session in sessions:
        stored = [e for e in events if isinstance(e, SegmentStored) and e.session_id == session.id]
        spans = sorted((e.first_seq, e.last_seq) for e in stored)
        assert sum(b - a + 1 for a, b in spans) == len(seqs), "every chunk is in one segment, told once"
        (closed,) = (e for e in events if isinstance(e, SessionClosed) and e.session_id == session.id)
        assert closed.md5 == hashlib.md5(session.pcm).hexdigest()
        assert closed.gaps == 4
    assert run.read(specs.AUDIO_DEADLETTER) == []
    assert run.worker.codes == [-9]

    def shown() -> dict[str, tuple[Any, ...]]:
        rows = run.rows("SELECT session_id, status, seqs, gaps, md5 FROM audio_sessions")
        return {str(name): tuple(rest) for name, *rest in rows}

    truth = {s.id: ("closed", len(seqs), 4, hashlib.md5(s.pcm).hexdigest()) for s in sessions}
    run.until(lambda: shown() == truth, f"ClickHouse shows the sessions: {shown()}")
    run.until(
        lambda: run.rows("SELECT DISTINCT status FROM audio_segments") == [("removed",)],
        "ClickHouse shows the segments",
    )


async def turned_away(gateway: Gateway, session: Session) -> tuple[str, int | None]:
    """The code of the error that an opened connection ends with, and its close code."""
    opened = session.opened
    said = OpenMessage(opened.format, opened.rate, opened.channels)
    url = f"{gateway.url}/ws/audio/{session.id}"
    async with aiohttp.ClientSession() as client, client.ws_connect(url) as ws, asyncio.timeout(30):
        await ws.send_str(encode_message(said))
        heard = [json.loads(frame.data) async for frame in ws]
        return heard[-1]["code"], ws.close_code


def test_what_does_not_fit_the_memory_is_refused_or_read_from_the_log(new_run: Callable[..., Run]) -> None:
    # A window of 6 s is 192 kB in 47 chunks: five fit a megabyte.
    run = new_run(audio_memory_mb=1)
    gateway = Gateway(run, "gateway").start()
    sessions = [new_session(i) for i in range(9)]
    for session in sessions[:8]:
        run.talker.say(session.opened)
        run.talker.flush()
    run.until(lambda: all(run.state(s).get("status") == "open" for s in sessions[:8]), "eight sessions are open")
    try:
        assert asyncio.run(turned_away(gateway, sessions[8])) == ("refused", 1013)
        with urlopen(f"{gateway.url}/metrics", timeout=5) as page:
            assert total(page.read().decode(), "sluiceway_gateway_audio_refused_total") == 1
        command = [sys.executable, "-m", "compose.cli", "status", "--json"]
        environ = {**os.environ, **gateway.process.settings.environ()}
        told = json.loads(subprocess.run(command, env=environ, capture_output=True, timeout=60).stdout)["audio"]
    finally:
        gateway.stop()
    refused = [event.session_id for event in run.events() if isinstance(event, SessionRefused)]
    assert refused == [sessions[8].id]
    assert (told["sessions_live"], told["sessions_refused"], told["sessions_deferred"]) == (8, 1, 3)
    (memory,) = told["memory"]
    assert (memory["promised_bytes"], memory["high"]) == (5 * (192_000 + 47 * CHUNK_OVERHEAD), True)
    high = r'sluiceway_state\{name="worker_memory_high",.*\} 1.0'
    run.until(lambda: len(re.findall(high, run.ask("/metrics")[1].decode())) == PARTITIONS, "metrics warn of memory")
    for seq in range(60):
        for i, session in enumerate(sessions[:8]):
            session.chunks[seq] = noise(i, seq, session.opened)
            run.talker.say(Chunk(session.id, seq, 0, None, session.chunks[seq]))
    run.talker.flush()
    assert run.state(sessions[8])["status"] == "refused"
    assert sum(run.state(s)["deferred"] for s in sessions[:8]) == 3
    for session in sessions[:8]:
        run.talker.say(Close(session.id))
    run.talker.flush()
    run.until(lambda: all(run.state(s).get("status") == "closed" for s in sessions[:8]), "all sessions are closed")
    run.until(
        lambda: all(not run.objects(f"{session_prefix(s.id)}segments/") for s in sessions), "segments are removed"
    )
    for session in sessions[:8]:
        run.assert_recorded(session, [])


def test_bad_records_are_dead_letters_and_the_good_audio_is_unharmed(new_run: Callable[..., Run]) -> None:
    run = new_run()
    session = new_session(0)
    name = session.id.encode()
    number = [("captured_ms", b"0")]
    bad = [
        (b"never-opened", b"ab", [("type", b"chunk"), ("seq", b"0"), *number], "before_open"),
        (name, b"abc", [("type", b"chunk"), ("seq", b"90"), *number], "odd_length"),
        (name, b"ab", [("type", b"chunk"), ("seq", b"91"), *number, ("md5", b"0" * 32)], "md5_mismatch"),
        (b"../../etc", b"ab", [("type", b"chunk"), ("seq", b"0"), *number], "bad_id"),
        (b"..", b"ab", [("type", b"chunk"), ("seq", b"0"), *number], "bad_id"),
        (b"a\x00\n", b"", [("type", b"close")], "bad_id"),
        (b"x" * 1_000, b"ab", [("type", b"chunk"), ("seq", b"0"), *number], "bad_id"),
        (name, b"", [("type", b"open"), ("format", b"mp3"), ("rate", b"16000"), ("channels", b"1")], "bad_header"),
        (name, b"", [("type", b"open"), ("format", b"opus"), ("rate", b"48000"), ("channels", b"1")], "conflict"),
        (name, b"", [("type", b"what")], "bad_type"),
        (name, b"ab", [("type", b"chunk"), ("seq", b"-1"), *number], "bad_header"),
        (name, bytes(MAX_CHUNK_BYTES + 2), [("type", b"chunk"), ("seq", b"92"), *number], "too_large"),
    ]
    run.talker.say(session.opened)
    for seq in range(20):
        session.chunks[seq] = noise(0, seq, session.opened)
        run.talker.say(Chunk(session.id, seq, 0, None, session.chunks[seq]))
        if seq < len(bad):
            key, value, headers, _ = bad[seq]
            run.talker.raw(key, value, headers)
    # A seq that goes back is there already: the bytes that came first count.
    run.talker.say(Chunk(session.id, 7, 0, None, b"other bytes."))
    refused = run.talker.refused(session.id.encode(), bytes(10_000_000), [("type", b"chunk"), ("seq", b"93"), *number])
    assert refused == KafkaError.MSG_SIZE_TOO_LARGE
    run.talker.say(Close(session.id))
    run.talker.say(Close(session.id))
    run.talker.say(Chunk(session.id, 21, 0, None, noise(0, 21, session.opened)))
    run.talker.flush()
    run.until(lambda: run.state(session).get("status") == "closed", "the session is closed")
    run.until(lambda: len(run.read(specs.AUDIO_DEADLETTER)) == len(bad) + 1, "every bad record is a dead letter")
    reasons = sorted(headers["reason"].decode() for _, _, headers in run.read(specs.AUDIO_DEADLETTER))
    assert reasons == sorted([*(reason for *_, reason in bad), "after_close"])
    run.until(lambda: not run.objects(f"{session_prefix(session.id)}segments/"), "segments are removed")
    run.assert_recorded(session, [])
