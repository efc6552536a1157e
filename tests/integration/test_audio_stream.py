"""Audio through the real stack: what producers write to Kafka comes out of the object store bit for bit."""

from __future__ import annotations

import asyncio
import hashlib
import io
import json
import random
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import clickhouse_connect
import pytest
import soundfile
from confluent_kafka import Consumer, KafkaException, Producer, TopicPartition
from confluent_kafka.admin import AdminClient

from compose.local.process import free_port
from compose.local.stack import LocalStack
from compose.settings import Settings
from compose.worker import bucket
from tests.chaos.workers import Worker
from tests.warehouse import new_database
from topics import audio, specs
from topics.audio import Chunk, Close, Format, Open, Store, Tier
from topics.audio_events import (
    AudioEvent,
    Manifest,
    SegmentStored,
    SessionClosed,
    decode_event,
    decode_manifest,
    manifest_key,
    session_prefix,
)

pytestmark = pytest.mark.stack

CHILD = ("compose.cli", "worker", "--streams", "audio", "--child")
GROUP = "sluiceway-audio"
TOPICS = (specs.AUDIO_CHUNKS, specs.AUDIO_SEGMENTS, specs.AUDIO_DEADLETTER, specs.changelog_name(GROUP), specs.OWNERS)
PARTITIONS = 2
CHUNK_MS = 128
DEADLINE_S = 90.0
#: A minute becomes two seconds.
QUICK: dict[str, Any] = {
    "audio_upload_after_s": 2.0,
    "audio_silence_s": 3.0,
    "audio_session_idle_s": 15.0,
    "audio_reorder_s": 0.5,
    "audio_window_s": 6.0,
    "audio_part_mb": 5,
    "flush_interval_s": 0.1,
    "rollup_interval_s": 0.2,
    "session_timeout_s": 2.0,
    "partitions": PARTITIONS,
}


@dataclass
class Session:
    """One session's truth: the chunks that Kafka has of it, by seq."""

    opened: Open
    chunks: dict[int, bytes] = field(default_factory=dict)

    @property
    def id(self) -> str:
        return self.opened.session_id

    @property
    def pcm(self) -> bytes:
        return b"".join(self.chunks[seq] for seq in sorted(self.chunks))


class Talker:
    """A plain producer of audio records."""

    def __init__(self, bootstrap: str) -> None:
        self._producer = Producer({"bootstrap.servers": bootstrap, "partitioner": "murmur2_random", "linger.ms": 2})

    def say(self, record: Any, *headers: tuple[str, bytes]) -> None:
        """Send one record."""
        encoded = audio.encode(record)
        self._producer.produce(specs.AUDIO_CHUNKS, encoded.value, encoded.key, headers=[*encoded.headers, *headers])
        self._producer.poll(0)

    def raw(self, key: bytes, value: bytes, headers: list[tuple[str, bytes]]) -> None:
        """Send anything."""
        self._producer.produce(specs.AUDIO_CHUNKS, value, key, headers=headers)

    def flush(self) -> None:
        """Wait until Kafka has all."""
        assert self._producer.flush(20) == 0


def noise(seed: int, seq: int, opened: Open) -> bytes:
    """A chunk's PCM."""
    return random.Random(seed * 1_000_003 + seq).randbytes(opened.byte_rate * CHUNK_MS // 1000)


def new_session(number: int, **other: Any) -> Session:
    """A session of 16 kHz mono PCM kept as FLAC."""
    values = {"format": Format.PCM_S16LE, "rate": 16_000, "channels": 1, "tier": Tier.STANDARD, "store": Store.FLAC}
    return Session(Open(session_id=f"talk-{number}-{time.time_ns()}", user="u", **{**values, **other}))


@dataclass
class Run:
    """An audio worker on the stack, with a database of its own."""

    stack: LocalStack
    settings: Settings
    worker: Worker
    talker: Talker

    def until(self, true: Callable[[], bool], what: str, deadline_s: float = DEADLINE_S) -> None:
        """Poll until `true`, starting a dead worker again."""
        started = time.monotonic()
        while not true():
            self.worker.look()
            assert time.monotonic() - started < deadline_s, (
                f"not within {deadline_s:.0f} s: {what}\n{self.worker.log()}"
            )
            time.sleep(0.1)

    def ask(self, path: str) -> tuple[int, bytes]:
        """Status and body of the worker's own endpoint; 0 when it does not answer."""
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.settings.worker_port}{path}", timeout=3) as page:
                return page.status, page.read()
        except urllib.error.HTTPError as error:
            return error.code, error.read()
        except OSError:
            return 0, b""

    def state(self, session: Session) -> dict[str, Any]:
        """What the owner says of a session."""
        code, body = self.ask(f"/audio/{session.id}")
        found: dict[str, Any] = json.loads(body) if code in (200, 404) else {}
        return found

    def objects(self, prefix: str) -> dict[str, bytes]:
        """All objects below a prefix."""

        async def read() -> dict[str, bytes]:
            store = bucket(self.settings)
            try:
                keys = [info.key async for info in store.list(prefix)]
                return {key: await store.get(key) or b"" for key in keys}
            finally:
                await store.close()

        return asyncio.run(read())

    def events(self) -> list[AudioEvent]:
        """All events so far."""
        return [decode_event(value) for _, value, _ in self.read(specs.AUDIO_SEGMENTS)]  # type: ignore[misc]

    def read(self, topic: str) -> list[tuple[bytes, bytes, dict[str, bytes]]]:
        """What a read_committed reader sees of a topic."""
        reader = Consumer(
            {
                "bootstrap.servers": self.stack.kafka.bootstrap,
                "group.id": "look",
                "enable.auto.commit": False,
                "enable.partition.eof": True,
                "isolation.level": "read_committed",
                "auto.offset.reset": "earliest",
            }
        )
        found: list[tuple[bytes, bytes, dict[str, bytes]]] = []
        try:
            for partition in reader.list_topics(topic, 10).topics[topic].partitions:
                reader.assign([TopicPartition(topic, partition, 0)])
                while True:
                    message = reader.poll(10)
                    if message is None or message.error():
                        break
                    found.append((message.key(), message.value(), dict(message.headers() or [])))
        finally:
            reader.close()
        return found

    def rows(self, sql: str) -> list[tuple[Any, ...]]:
        """Rows of a query."""
        client = clickhouse_connect.get_client(
            host="127.0.0.1", port=self.stack.clickhouse.port, database=self.settings.clickhouse_database
        )
        try:
            return [tuple(row) for row in client.query(sql).result_rows]
        finally:
            client.close()

    def assert_recorded(self, session: Session, gaps: list[list[int]]) -> Manifest:
        """The recording holds exactly what Kafka had, and the manifest says so."""
        found = self.objects(session_prefix(session.id))
        manifest = decode_manifest(found[manifest_key(session.id)])
        assert isinstance(manifest, Manifest)
        recording = found[manifest.recording]
        assert hashlib.sha256(recording).hexdigest() == manifest.sha256
        assert len(recording) == manifest.size_bytes
        pcm, rate = soundfile.read(io.BytesIO(recording), dtype="int16")
        assert rate == session.opened.rate
        assert pcm.tobytes() == session.pcm
        assert manifest.md5 == hashlib.md5(session.pcm).hexdigest()
        assert [list(gap) for gap in manifest.gaps] == gaps
        assert set(found) == {manifest_key(session.id), manifest.recording}, "no segment is left beside the recording"
        return manifest


@pytest.fixture
def new_run(stack: LocalStack, tmp_path: Path) -> Iterator[Callable[..., Run]]:
    """Starts an audio worker on empty topics."""
    runs: list[Run] = []

    def start(**settings: Any) -> Run:
        clear(stack.kafka.bootstrap)
        own = stack.settings(
            **{
                **QUICK,
                "clickhouse_database": new_database(),
                "data_dir": tmp_path,
                "worker_port": free_port(),
                **settings,
            }
        )
        run = Run(stack, own, Worker("audio", own, CHILD).start(), Talker(stack.kafka.bootstrap))
        runs.append(run)
        run.until(lambda: run.worker.owns() == set(range(PARTITIONS)), "the worker owns all partitions")
        return run

    yield start
    for run in runs:
        run.worker.leave()
        run.worker.kill(after_s=5.0)
    clear(stack.kafka.bootstrap)


def clear(bootstrap: str) -> None:
    """Delete the stream's topics and group."""
    admin = AdminClient({"bootstrap.servers": bootstrap})
    for future in [*admin.delete_topics(list(TOPICS)).values(), *admin.delete_consumer_groups([GROUP]).values()]:
        try:
            future.result(20)
        except KafkaException:
            pass
    deadline = time.monotonic() + 20
    while set(TOPICS) & set(admin.list_topics(timeout=10).topics):
        assert time.monotonic() < deadline
        time.sleep(0.1)


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


def test_what_does_not_fit_the_memory_is_refused_or_read_from_the_log(new_run: Callable[..., Run]) -> None:
    # A window of 6 s is 192 kB: five fit a megabyte.
    run = new_run(audio_memory_mb=1, partitions=PARTITIONS)
    sessions = [new_session(i) for i in range(9)]
    for session in sessions[:8]:
        run.talker.say(session.opened)
        run.talker.flush()
    run.until(lambda: all(run.state(s).get("status") == "open" for s in sessions[:8]), "eight sessions are open")
    run.talker.say(sessions[8].opened, ("refuse", b"1"))
    for seq in range(60):
        for i, session in enumerate(sessions[:8]):
            session.chunks[seq] = noise(i, seq, session.opened)
            run.talker.say(Chunk(session.id, seq, 0, None, session.chunks[seq]))
    run.talker.flush()
    run.until(lambda: run.state(sessions[8]).get("status") == "refused", "the ninth is refused")
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
        (b"x" * 1_000, b"ab", [("type", b"chunk"), ("seq", b"0"), *number], "bad_id"),
        (name, b"", [("type", b"open"), ("format", b"mp3"), ("rate", b"16000"), ("channels", b"1")], "bad_header"),
        (name, b"", [("type", b"open"), ("format", b"opus"), ("rate", b"48000"), ("channels", b"1")], "conflict"),
        (name, b"", [("type", b"what")], "bad_type"),
    ]
    run.talker.say(session.opened)
    for seq in range(20):
        session.chunks[seq] = noise(0, seq, session.opened)
        run.talker.say(Chunk(session.id, seq, 0, None, session.chunks[seq]))
        if seq % 2 and seq // 2 < len(bad):
            key, value, headers, _ = bad[seq // 2]
            run.talker.raw(key, value, headers)
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
