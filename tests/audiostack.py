"""Audio on the real stack: producers, a worker process, and what came of it in Kafka, the object store and ClickHouse."""

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
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import clickhouse_connect
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
from topics.audio import Format, Open, Store, Tier
from topics.audio_events import (
    AudioEvent,
    Manifest,
    decode_event,
    decode_manifest,
    manifest_key,
    session_prefix,
)

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


@contextmanager
def audio_run(stack: LocalStack, folder: Path, **settings: Any) -> Iterator[Run]:
    """An audio worker on empty topics; both end with it."""
    clear(stack.kafka.bootstrap)
    places = {"clickhouse_database": new_database(), "data_dir": folder, "worker_port": free_port()}
    own = stack.settings(**{**QUICK, **places, **settings})
    run = Run(stack, own, Worker("audio", own, CHILD).start(), Talker(stack.kafka.bootstrap))
    try:
        run.until(lambda: run.worker.owns() == set(range(PARTITIONS)), "the worker owns all partitions")
        yield run
    finally:
        for server in stack.servers:
            server.start()
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
