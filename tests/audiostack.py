"""Audio on the real stack: producers, a worker process, and what came of it in Kafka, the object store and ClickHouse."""

from __future__ import annotations

import asyncio
import hashlib
import io
import json
import os
import random
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import soundfile
from confluent_kafka import Consumer, ConsumerGroupTopicPartitions, KafkaError, Producer, TopicPartition
from confluent_kafka.admin import AdminClient

from compose.clients import bucket
from compose.local.process import free_port
from compose.local.stack import LocalStack
from compose.settings import Settings
from tests.audio import ogg_packets
from tests.chaos.workers import ROOT, Worker
from tests.streamrun import StreamRun, emptied, end
from tests.warehouse import new_database
from topics import audio, specs
from topics.audio import Format, Open, Store, Tier
from topics.audio_events import (
    AUDIO_PREFIX,
    AudioEvent,
    Manifest,
    decode_event,
    decode_manifest,
    manifest_key,
    session_prefix,
)

CHILD = ("compose.cli", "worker", "--streams", "audio", "--child")
GATEWAY = ("compose.cli", "gateway")
GROUP = "sluiceway-audio"
TOPICS = (specs.AUDIO_CHUNKS, specs.AUDIO_SEGMENTS, specs.AUDIO_DEADLETTER)
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

    @property
    def spans(self) -> list[list[int]]:
        """First and last of each run of seqs."""
        runs: list[list[int]] = []
        for seq in sorted(self.chunks):
            if not runs or runs[-1][1] != seq - 1:
                runs.append([seq, seq])
            runs[-1][1] = seq
        return runs

    @property
    def gaps(self) -> list[list[int]]:
        """First and last of each run of seqs that is missing before one."""
        ends = [-1, *(last for _, last in self.spans)]
        between = zip(ends, self.spans, strict=False)
        return [[end + 1, first - 1] for end, (first, _) in between if first > end + 1]


class Talker:
    """A plain producer of audio records."""

    def __init__(self, bootstrap: str) -> None:
        how = {"partitioner": "murmur2_random", "linger.ms": 2, "message.max.bytes": 20_000_000}
        self._producer = Producer({"bootstrap.servers": bootstrap, **how})
        self._refused = 0

    def say(self, record: Any, *headers: tuple[str, bytes]) -> None:
        """Send one record."""
        encoded = audio.encode(record)
        said = {"headers": [*encoded.headers, *headers], "on_delivery": self._delivered}
        self._producer.produce(specs.AUDIO_CHUNKS, encoded.value, encoded.key, **said)
        self._producer.poll(0)

    def _delivered(self, error: KafkaError | None, message: object) -> None:
        self._refused += error is not None

    def raw(self, key: bytes, value: bytes, headers: list[tuple[str, bytes]]) -> None:
        """Send anything."""
        self._producer.produce(specs.AUDIO_CHUNKS, value, key, headers=headers)

    def refused(self, key: bytes, value: bytes, headers: list[tuple[str, bytes]]) -> int | None:
        """The code with which Kafka refuses a record; None if it takes it."""
        codes: list[int | None] = []
        note = lambda error, message: codes.append(error and error.code())  # noqa: E731
        self._producer.produce(specs.AUDIO_CHUNKS, value, key, headers=headers, on_delivery=note)
        self.flush()
        return codes[0]

    def flush(self) -> None:
        """Wait until Kafka has all."""
        assert self._producer.flush(20) == 0 and not self._refused


def noise(seed: int, seq: int, opened: Open) -> bytes:
    """A chunk's PCM."""
    return random.Random(seed * 1_000_003 + seq).randbytes(opened.byte_rate * CHUNK_MS // 1000)


def new_session(number: int, **other: Any) -> Session:
    """A session of 16 kHz mono PCM kept as FLAC."""
    values = {"format": Format.PCM_S16LE, "rate": 16_000, "channels": 1, "tier": Tier.STANDARD, "store": Store.FLAC}
    return Session(Open(session_id=f"talk-{number}-{time.time_ns()}", user="u", **{**values, **other}))


@dataclass
class Run(StreamRun):
    """Audio workers on the stack, with a database of their own."""

    talker: Talker
    store_url: str = ""  # where the objects are, if the workers reach them through a proxy

    def join(self, **settings: Any) -> Worker:
        """Start a further worker in the same group, with settings of its own."""
        name = f"audio-{len(self.workers)}"
        own = replace(self.settings, data_dir=self.settings.data_dir / name, worker_port=free_port(), **settings)
        self.workers.append(Worker(name, own, self.worker.command))
        return self.workers[-1].start()

    @property
    def direct(self) -> Settings:
        """Settings that lead to the object store itself."""
        return replace(self.settings, s3_endpoint=self.store_url or self.settings.s3_endpoint)

    def state(self, session: Session) -> dict[str, Any]:
        """What the owner says of a session."""
        code, body = self.ask(f"/audio/{session.id}")
        found: dict[str, Any] = json.loads(body) if code in (200, 404) else {}
        return found

    def objects(self, *prefixes: str) -> dict[str, bytes]:
        """All objects below the prefixes, as the server itself has them."""

        async def read() -> dict[str, bytes]:
            store = bucket(self.direct)
            try:
                keys = [info.key for prefix in prefixes async for info in store.list(prefix)]
                return {key: await store.get(key) or b"" for key in keys}
            finally:
                await store.close()

        return asyncio.run(read())

    def uploads(self) -> list[str]:
        """The keys of all uploads that were begun and not ended."""

        async def read() -> list[str]:
            store = bucket(self.direct)
            try:
                return [upload.key async for upload in store.list_uploads(AUDIO_PREFIX)]
            finally:
                await store.close()

        return asyncio.run(read())

    def events(self) -> list[AudioEvent]:
        """All events so far."""
        return [decode_event(value) for _, value, _ in self.read(specs.AUDIO_SEGMENTS)]  # type: ignore[misc]

    def clean(self, *options: str) -> dict[str, Any]:
        """What `sluiceway clean` says to have removed, of any age unless `options` say otherwise."""
        argv = [sys.executable, "-m", "compose.cli", "clean", "--json", *(options or ("--older-than", "0s"))]
        env = {**os.environ, **self.direct.environ()}
        done = subprocess.run(argv, cwd=ROOT, env=env, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr
        found: dict[str, Any] = json.loads(done.stdout)
        return found

    def ends(self) -> list[int]:
        """The end offset of each partition of the source topic."""
        reader = Consumer({"bootstrap.servers": self.stack.kafka.bootstrap, "group.id": "look"})
        try:
            at = [TopicPartition(specs.AUDIO_CHUNKS, partition) for partition in range(PARTITIONS)]
            return [int(reader.get_watermark_offsets(tp, timeout=10)[1]) for tp in at]
        finally:
            reader.close()

    def committed(self) -> list[int]:
        """The group's committed offset of each partition."""
        at = [TopicPartition(specs.AUDIO_CHUNKS, partition) for partition in range(PARTITIONS)]
        request = [ConsumerGroupTopicPartitions(GROUP, at)]
        admin = AdminClient({"bootstrap.servers": self.stack.kafka.bootstrap})
        found = admin.list_consumer_group_offsets(request, require_stable=False)[GROUP].result(20)
        return [int(tp.offset) for tp in sorted(found.topic_partitions, key=lambda tp: tp.partition)]

    def assert_recorded(self, session: Session, gaps: list[list[int]]) -> Manifest:
        """The recording holds exactly what Kafka had, and the manifest says so."""
        found = self.objects(session_prefix(session.id))
        manifest = decode_manifest(found[manifest_key(session.id)])
        assert isinstance(manifest, Manifest)
        recording = found[manifest.recording]
        assert hashlib.sha256(recording).hexdigest() == manifest.sha256
        assert len(recording) == manifest.size_bytes
        assert _heard(session.opened, recording) == session.pcm
        assert manifest.md5 == hashlib.md5(session.pcm).hexdigest()
        assert [list(span) for span in manifest.seqs] == session.spans
        assert [list(gap) for gap in manifest.gaps] == gaps == session.gaps
        assert manifest.failed == ()
        assert set(found) == {manifest_key(session.id), manifest.recording}, "no segment is left beside the recording"
        return manifest


def _heard(opened: Open, recording: bytes) -> bytes:
    """What a recording holds: its PCM, its Opus packets, or a FLAC stream as it came."""
    if opened.format is Format.OPUS:
        return b"".join(ogg_packets(recording)[2:])
    if opened.format is Format.FLAC:
        return recording
    pcm, rate = soundfile.read(io.BytesIO(recording), dtype="int16")
    assert rate == opened.rate
    found: bytes = pcm.tobytes()
    return found


class Gateway:
    """A gateway's process on a port of its own, that it keeps when it is started again."""

    def __init__(self, run: StreamRun, name: str, **settings: Any) -> None:
        own = replace(run.settings, gateway_port=free_port(), data_dir=run.settings.data_dir / name, **settings)
        self.url = f"http://127.0.0.1:{own.gateway_port}"
        self.process = Worker(name, own, GATEWAY, revive=False)

    def start(self) -> Gateway:
        self.process.start()
        deadline = time.monotonic() + DEADLINE_S
        while time.monotonic() < deadline:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", self.process.settings.gateway_port)) == 0:
                    return self
            time.sleep(0.05)
        raise AssertionError(self.process.log())

    def stop(self) -> None:
        self.process.leave()
        self.process.kill(after_s=10)


@contextmanager
def audio_run(
    stack: LocalStack,
    folder: Path,
    command: Sequence[str] = CHILD,
    revive: bool = True,
    store_url: str = "",
    **settings: Any,
) -> Iterator[Run]:
    """An audio worker, started by `command`, on empty topics; both end with it."""
    with emptied(stack, "audio", *TOPICS):
        places = {"clickhouse_database": new_database(), "data_dir": folder, "worker_port": free_port()}
        own = stack.settings(**{**QUICK, **places, **settings})
        worker = Worker("audio", own, command, revive).start()
        run = Run(stack, own, [worker], Talker(stack.kafka.bootstrap), store_url)
        try:
            run.until(lambda: run.worker.owns() == set(range(PARTITIONS)), "the worker owns all partitions")
            yield run
        finally:
            # Workers end only while what they wait for is there.
            for server in stack.servers:
                server.start()
            end(run.workers)
