"""Live audio at scale: sessions through one gateway and one worker, the stack beside them on the same two cores.

The load (`audio_load`) sends from a process of its own. What is measured lies between its words `measuring` and `measured`:
all sessions are open then. Afterwards they are all closed at once, which is timed apart, and every recording is held
against what was sent.
"""

from __future__ import annotations

import asyncio
import hashlib
import io
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import msgspec
import soundfile

from compose.audio_stream import audio
from compose.bench import cores
from compose.bench.audio_load import OPENED_PER_S, Plan
from compose.bench.audio_report import Found
from compose.bench.events import make_topics
from compose.bench.gateway import MeasuredGateway
from compose.bench.process import cpu_s
from compose.bench.result import BenchFailed
from compose.bench.voice import CHUNK_BYTES, Voice
from compose.bench.worker import MeasuredWorker
from compose.clients import bucket
from compose.figures import bucket_quantile, buckets, since, total
from compose.local.process import dying_with_parent, free_port
from compose.local.stack import LocalStack
from compose.settings import Settings
from compose.traffic_stream import traffic
from streams.audio.held import CHUNK_OVERHEAD
from topics.audio_events import Manifest, decode_manifest, manifest_key

CORES = 2
_CLOSE_S = 600.0
_SAMPLED = 10
_HANDLING = "sluiceway_handling_seconds"
_FRAMES = "sluiceway_gateway_audio_frames_total"

#: Called each second with the phase, the seconds since the load began, and how many sessions are closed.
Progress = Callable[[str, float, int], None]


def share_two_cores() -> set[int]:
    """Leave this process, and all its future children, two cores; these. Raises TooFewCores."""
    if not hasattr(os, "sched_setaffinity"):
        raise cores.TooFewCores("processes cannot be pinned to cores on this system; run the bench on Linux")
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:CORES])
    return os.sched_getaffinity(0)


@dataclass
class System:
    """All that runs, and what it has used."""

    stack: LocalStack
    settings: Settings
    gateway: MeasuredGateway
    worker: MeasuredWorker
    cores: set[int]

    def cpu_s(self, load_pid: int) -> dict[str, float]:
        """Seconds of CPU by process."""
        pids = {server.name.lower(): server.pid for server in self.stack.servers}
        pids |= {"gateway": self.gateway.pid, "worker": self.worker.pid, "load": load_pid}
        found = {name: cpu_s(pid) for name, pid in pids.items() if pid is not None}
        busy_s = sum(cores.busy_s(core) for core in sorted(self.cores))
        return {**found, "others": busy_s - sum(found.values())}


@dataclass
class _Sampled:
    """What was read off the worker while the load went on."""

    rss_peak_bytes: int = 0
    held_peak_bytes: int = 0
    #: The largest excess of memory over what the audio held explains, bytes.
    overhead_peak_bytes: float = -1e18
    times: list[Any] = field(default_factory=list)

    def take(self, worker: MeasuredWorker) -> None:
        """Look once."""
        held, rss = int(worker.figures().get("held_bytes", 0)), worker.rss_bytes()
        # The goal is of the audio alone, without what a worker counts beside it.
        held = held * CHUNK_BYTES // (CHUNK_BYTES + CHUNK_OVERHEAD)
        self.held_peak_bytes = max(self.held_peak_bytes, held)
        self.rss_peak_bytes = max(self.rss_peak_bytes, rss)
        self.overhead_peak_bytes = max(self.overhead_peak_bytes, rss - 1.3 * held)


@contextmanager
def audio_system(folder: Path, tuning: Mapping[str, Any]) -> Iterator[System]:
    """The stack, a gateway and a worker, ready, on two cores. Raises BenchFailed, LocalStackError, TooFewCores."""
    two = share_two_cores()
    with LocalStack.on_free_ports(folder / "audio") as stack:
        own = stack.settings(**tuning, worker_port=free_port(), gateway_port=free_port(), log_level="warning")
        make_topics(own.kafka_bootstrap, asyncio.run(_topics(own)))
        worker = MeasuredWorker(own, None, stack.data_dir / "worker.log", "audio")
        gateway = MeasuredGateway(own, stack.data_dir / "gateway.log")
        try:
            worker.wait_ready()
            gateway.wait_ready()
            yield System(stack, own, gateway, worker, two)
        finally:
            gateway.stop()
            worker.stop()


async def _topics(settings: Settings) -> list[Any]:
    objects = bucket(settings)
    try:
        # A gateway is ready once it can take traffic too.
        return [*audio(settings, objects).topics, *traffic(settings).topics]
    finally:
        await objects.close()


def measure_audio(system: System, prefix: str, sessions: int, seconds: float, progress: Progress) -> Found:
    """Send `sessions` for `seconds` and close them. Raises BenchFailed when something dies or says nothing more."""
    url = urlsplit(system.gateway.url)
    assert url.hostname is not None and url.port is not None
    plan = Plan(url.hostname, url.port, prefix, sessions, seconds, _CLOSE_S)
    argv = [sys.executable, "-m", "compose.bench.audio_load", msgspec.json.encode(plan).decode()]
    load = subprocess.Popen(dying_with_parent(argv), stdout=subprocess.PIPE, text=True)
    sampled = _Sampled()
    try:
        done = _follow(system, load, sampled, progress)
    finally:
        load.kill()
        load.wait()
    before, after = sampled.times
    manifests, wrong = asyncio.run(_check(system.settings, done["sessions"]))
    return _found(system, sessions, seconds, done, sampled, before, after, manifests, wrong)


def _follow(system: System, load: subprocess.Popen[str], sampled: _Sampled, progress: Progress) -> dict[str, Any]:
    assert load.stdout is not None
    started, phase = time.monotonic(), "opening"
    for line in load.stdout:
        said: dict[str, Any] = json.loads(line)
        if said["phase"] == "done":
            return said
        phase = said["phase"] or phase
        if said["phase"] in ("measuring", "measured"):
            sampled.times.append(_Reading.of(system, load.pid))
        system.worker.check()
        system.gateway.check()
        if phase == "measuring":
            sampled.take(system.worker)
        progress(phase, time.monotonic() - started, said["closed"])
    raise BenchFailed(f"the load ended with code {load.wait()}")


@dataclass(frozen=True)
class _Reading:
    """Counters at one moment."""

    at_s: float
    cpu_s: dict[str, float]
    gateway: str
    worker: str

    @classmethod
    def of(cls, system: System, load_pid: int) -> _Reading:
        return cls(time.monotonic(), system.cpu_s(load_pid), system.gateway.metrics(), system.worker.metrics())


def _found(
    system: System,
    sessions: int,
    seconds: float,
    done: dict[str, Any],
    sampled: _Sampled,
    before: _Reading,
    after: _Reading,
    manifests: dict[str, Manifest],
    wrong: list[str],
) -> Found:
    used = {name: after.cpu_s[name] - before.cpu_s[name] for name in before.cpu_s}
    window_s = after.at_s - before.at_s
    frames = total(after.gateway, _FRAMES) - total(before.gateway, _FRAMES)
    handling = since(buckets(before.worker, _HANDLING), buckets(after.worker, _HANDLING))
    figures = system.worker.figures()
    stored, failed = figures.get("outcome_stored", 0.0), figures.get("outcome_failed", 0.0)
    sent = sum(count for _, count, _, _ in done["sessions"])
    kept = sum(last - first + 1 for manifest in manifests.values() for first, last in manifest.seqs)
    return Found(
        sessions=sessions,
        seconds=seconds,
        frames_per_s=done["frames"] / seconds,
        bytes_per_s=done["frames"] / seconds * CHUNK_BYTES,
        frames=sent,
        frames_lost=sent - kept,
        durable_p50_s=done["durable_p50_s"],
        durable_p99_s=done["durable_p99_s"],
        durable_max_s=done["durable_max_s"],
        handling_p50_s=bucket_quantile(handling, 0.50),
        handling_p99_s=bucket_quantile(handling, 0.99),
        segments_stored=int(stored),
        segments_failed=int(failed),
        worker_rss_peak_bytes=sampled.rss_peak_bytes,
        worker_held_peak_bytes=sampled.held_peak_bytes,
        worker_overhead_bytes=round(sampled.overhead_peak_bytes),
        gateway_us_per_frame=used["gateway"] / max(1.0, frames) * 1e6,
        worker_us_per_frame=used["worker"] / max(1.0, frames) * 1e6,
        cores={name: round(value / window_s, 3) for name, value in used.items()},
        close_s=done["close_s"],
        unclosed=sum(md5 is None for *_, md5 in done["sessions"]),
        recordings_wrong=wrong,
        sent_late_p99_s=done["sent_late_p99_s"],
        troubles=done["troubles"],
    )


async def _check(settings: Settings, sessions: list[Any]) -> tuple[dict[str, Manifest], list[str]]:
    """All manifests, and the sessions whose MD5, or for a sample whose decoded recording, is not what was sent."""
    voice, store = Voice(), bucket(settings)
    manifests: dict[str, Manifest] = {}
    wrong: list[str] = []
    try:
        for number, (session_id, sent, _, md5) in enumerate(sessions):
            found = decode_manifest(await store.get(manifest_key(session_id)) or b"")
            if not isinstance(found, Manifest):
                continue
            manifests[session_id] = found
            truth = await asyncio.to_thread(voice.md5, number, sent)
            if {found.md5, md5} - {truth} or (
                number % max(1, len(sessions) // _SAMPLED) == 0
                and _decoded_md5(await store.get(found.recording) or b"") != truth
            ):
                wrong.append(session_id)
    finally:
        await store.close()
    return manifests, wrong


def _decoded_md5(recording: bytes) -> str:
    try:
        pcm, _ = soundfile.read(io.BytesIO(recording), dtype="int16")
    except soundfile.LibsndfileError as error:
        return str(error)
    return hashlib.md5(pcm.tobytes(), usedforsecurity=False).hexdigest()


def expected_s(sessions: int, seconds: float) -> float:
    """About how long the load sends."""
    return sessions / OPENED_PER_S + 3.0 + seconds
