"""File jobs on the real stack: a producer, workers with real converters, and what came of it in Kafka and the bucket."""

from __future__ import annotations

import contextlib
import json
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
from confluent_kafka import Producer

from compose.clients import bucket_address
from compose.local.process import free_port
from compose.local.stack import LocalStack
from sinks.objects.client import s3_client
from tests.chaos.workers import Worker
from tests.streamrun import StreamRun, emptied, end
from tests.warehouse import new_database
from topics import files, specs
from topics.files import Cancel, JobRecord, Source, Submit
from topics.files_events import FINAL_EVENTS, AttemptDiscarded, AttemptStarted, JobCompleted, JobEvent, decode_event
from topics.malformed import Malformed

CHILD = ("compose.cli", "worker", "--streams", "files", "--child")
TOPICS = (specs.FILES_JOBS, specs.FILES_PROGRESS, specs.FILES_DEADLETTER)
PARTITIONS = 2
#: What a worker logs, with the exception, of an attempt that failed as `internal_error`.
UNEXPECTED = "an attempt failed unexpectedly"
QUICK: dict[str, Any] = {
    "files_concurrency": 4,
    "files_progress_s": 0.1,
    "files_sweep_s": 30.0,
    "files_url_s": 15,
    "converter_transfer_s": 10.0,
    "converter_threads": 1,
    "flush_interval_s": 0.1,
    "rollup_interval_s": 0.2,
    "session_timeout_s": 2.0,
    "partitions": PARTITIONS,
}


class JobProducer:
    """A plain producer of file jobs."""

    def __init__(self, bootstrap: str) -> None:
        self._producer = Producer(
            {"bootstrap.servers": bootstrap, "partitioner": "murmur2_random", "linger.ms": 2, "log_level": 0}
        )
        self.submitted: dict[str, Submit] = {}

    def submit(self, job_id: str, source: str | Source, format: str = "mp3", **other: Any) -> None:
        """Ask for an object of the bucket, or another source, in another format."""
        where = Source(key=source) if isinstance(source, str) else source
        values = {"user": "ada", "source": where, "quality": "low", **other}
        submit = Submit(job_id=job_id, format=format, submitted_ms=time.time_ns() // 1_000_000, **values)
        self.submitted[job_id] = submit
        self.say(submit)

    def cancel(self, job_id: str) -> None:
        """Cancel one."""
        self.say(Cancel(job_id))

    def say(self, record: JobRecord) -> None:
        """Send a record."""
        encoded = files.encode(record)
        self.raw(encoded.key or b"", encoded.value, encoded.headers)

    def raw(self, key: bytes, value: bytes, headers: Sequence[tuple[str, bytes | None]]) -> None:
        """Send anything."""
        self._producer.produce(specs.FILES_JOBS, value, key, headers=list(headers))
        assert self._producer.flush(30) == 0


@dataclass
class Told:
    """A job's events, in the order of its partition of `files.progress.v1`."""

    events: list[JobEvent] = field(default_factory=list)

    @property
    def end(self) -> JobEvent | None:
        """Its final event."""
        return next((event for event in self.events if isinstance(event, FINAL_EVENTS)), None)

    @property
    def attempts(self) -> int:
        """How often it was begun."""
        return sum(isinstance(event, AttemptStarted) for event in self.events)

    def voided(self) -> list[str]:
        """Why attempts came to nothing; `lost` when their worker died."""
        return [event.error_type for event in self.events if isinstance(event, AttemptDiscarded)]


class Objects:
    """The bucket, as a client of its own."""

    def __init__(self, stack: LocalStack) -> None:
        settings = stack.settings()
        self._bucket = settings.s3_bucket
        self._client = s3_client(bucket_address(settings))

    def put(self, key: str, data: bytes) -> str:
        """Write an object; its key."""
        self._client.put_object(Bucket=self._bucket, Key=key, Body=data)
        return key

    def get(self, key: str, to: Path) -> Path:
        """Write an object to a file."""
        to.write_bytes(self._client.get_object(Bucket=self._bucket, Key=key)["Body"].read())
        return to

    def head(self, key: str) -> dict[str, Any]:
        """What the store says of an object."""
        found: dict[str, Any] = self._client.head_object(Bucket=self._bucket, Key=key)
        return found

    def keys(self, prefix: str) -> set[str]:
        """All objects below a prefix."""
        pages = self._client.get_paginator("list_objects_v2").paginate(Bucket=self._bucket, Prefix=prefix)
        return {entry["Key"] for page in pages for entry in page.get("Contents", ())}

    def uploads(self, prefix: str) -> set[str]:
        """Keys of multipart uploads that were begun and not ended."""
        try:
            found = self._client.list_multipart_uploads(Bucket=self._bucket, Prefix=prefix)
        except self._client.exceptions.NoSuchUpload:
            return set()
        return {entry["Key"] for entry in found.get("Uploads", ())}

    def clear(self, prefix: str) -> None:
        """Remove all below a prefix."""
        for key in self.keys(prefix):
            self._client.delete_object(Bucket=self._bucket, Key=key)


@dataclass
class Run(StreamRun):
    """File workers on the stack, with a database of their own."""

    jobs: JobProducer
    objects: Objects

    def told(self) -> dict[str, Told]:
        """All events so far, by job."""
        found: dict[str, Told] = defaultdict(Told)
        for _, value, _ in self.read(specs.FILES_PROGRESS):
            event = decode_event(value)
            assert not isinstance(event, Malformed), event
            found[event.job_id].events.append(event)
        return found

    def state(self, job_id: str) -> dict[str, Any]:
        """What its owner says of a job; nothing while nobody answers for it."""
        for worker in self.workers:
            code, body = self.ask(f"/files/jobs/{job_id}", worker)
            if code in (200, 404):
                found: dict[str, Any] = json.loads(body)
                return found
        return {}

    def ended(self) -> set[str]:
        """The jobs that are over."""
        return {job_id for job_id, told in self.told().items() if told.end is not None}

    def dead(self) -> dict[str, str]:
        """The reasons of dead letters, by key."""
        return {key.decode(): headers["reason"].decode() for key, _, headers in self.read(specs.FILES_DEADLETTER)}

    def to_sweep(self) -> int:
        """Jobs whose attempts may have left something; a partition that nobody answers for counts as one."""
        found: dict[int, int] = dict.fromkeys(range(self.settings.partitions), 1)
        for worker in self.workers:
            code, body = self.ask("/files/queue", worker)
            if code == 200:
                found |= {part["partition"]: part["to_sweep"] for part in json.loads(body)["partitions"]}
        return sum(found.values())

    def converting(self) -> list[psutil.Process]:
        """The converter processes and ffmpegs of the workers."""
        found: list[psutil.Process] = []
        for worker in self.workers:
            for process in psutil.Process(worker.pid).children(recursive=True) if worker.running else ():
                with contextlib.suppress(psutil.NoSuchProcess):
                    if process.status() != psutil.STATUS_ZOMBIE:
                        found.append(process)
        return found

    def scratch(self) -> list[str]:
        """What lies in the workers' scratch folders beside their locks."""
        roots = [worker.settings.data_dir / "scratch" for worker in self.workers]
        return [str(file) for root in roots for file in root.glob("converter-*/*") if file.name != "lock"]

    def assert_sound(self) -> None:
        """Each job ended once and was told nothing after it; the results are the winners' and nothing else; nothing is left on
        the disk; no signed URL is in Kafka; nothing failed that nobody expected."""
        for worker in self.workers:
            _, unexpected, trace = worker.log_path.read_text(errors="replace").partition(UNEXPECTED)
            assert not unexpected, f"{worker.name}: {unexpected}{trace[:8_000]}"
        winners: set[str] = set()
        for job_id, told in self.told().items():
            ends = [event for event in told.events if isinstance(event, FINAL_EVENTS)]
            assert len(ends) == 1, f"{job_id} ended as {ends}"
            assert told.events[-1] is ends[0], f"{job_id} went on after its end"
            ids = [event.id for event in told.events]
            assert ids == sorted(set(ids)), f"{job_id} is told in disorder"
            winners |= {ends[0].r2_key} if isinstance(ends[0], JobCompleted) else set()
        self.until(lambda: self.objects.keys("converted/") == winners, "the bucket holds the winners only", 60)
        assert self.objects.uploads("converted/") == set()
        self.until(lambda: self.scratch() == [], "the scratch folders are empty", 20)
        for topic in (*TOPICS, specs.changelog_name("sluiceway-files")):
            for key, value, headers in self.read(topic):
                said = b" ".join([key or b"", value or b"", *(part or b"" for part in headers.values())])
                assert b"X-Amz-Signature" not in said and b"http://" not in said, said[:500]


@contextmanager
def files_run(stack: LocalStack, folder: Path, workers: int = 1, faults: str = "", **settings: Any) -> Iterator[Run]:
    """File workers on empty topics and a bucket without results; all end with it. `faults` are the first's."""
    database = new_database()
    objects = Objects(stack)
    with emptied(stack, "files", *TOPICS):
        objects.clear("converted/")
        made = []
        for number in range(workers):
            places = {"data_dir": folder / f"w{number}", "worker_port": free_port(), "clickhouse_database": database}
            own = stack.settings(**{**QUICK, **places, **settings}, faults="" if number else faults)
            made.append(Worker(f"files-{number}", own, CHILD).start())
        run = Run(stack, made[0].settings, made, JobProducer(stack.kafka.bootstrap), objects)
        partitions = set(range(run.settings.partitions))
        try:
            run.until(lambda: set().union(*(w.owns() for w in made)) == partitions, "all partitions are owned")
            yield run
        finally:
            for server in stack.servers:
                server.start()
            end(made)
