"""A `sluiceway worker` of its own, on one core, and what can be read off it from outside."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import psutil

from compose.bench.cores import pinned
from compose.bench.result import BenchFailed
from compose.local.process import dying_with_parent
from compose.settings import Settings

READY_S = 60.0


class MeasuredWorker:
    """A `sluiceway worker` child process on one core."""

    def __init__(self, settings: Settings, core: int, log_path: Path) -> None:
        self.core = core
        self._url = f"http://127.0.0.1:{settings.worker_port}"
        argv = [sys.executable, "-m", "compose.cli", "worker", "--streams", "traffic", "--child"]
        command = dying_with_parent(pinned(core, argv), signal.SIGKILL)
        self._log_path = log_path
        with log_path.open("ab") as log:
            self._process = subprocess.Popen(
                command, env={**os.environ, **settings.environ()}, stdout=log, stderr=subprocess.STDOUT
            )

    def wait_ready(self) -> None:
        """Return once every partition is taken over. Raises BenchFailed."""
        deadline = time.monotonic() + READY_S
        while not self._ready():
            self.check()
            if time.monotonic() > deadline:
                raise BenchFailed(f"the worker was not ready within {READY_S:.0f} s; see {self._log_path}")
            time.sleep(0.1)

    def check(self) -> None:
        """Raise BenchFailed if the process has ended."""
        if self._process.poll() is not None:
            tail = self._log_path.read_text(errors="replace")[-3000:]
            raise BenchFailed(f"the worker ended with code {self._process.returncode}:\n{tail}")

    def cpu_s(self) -> float:
        """User and system seconds of all its threads so far."""
        times = psutil.Process(self._process.pid).cpu_times()
        return float(times.user + times.system)

    def rss_peak_bytes(self) -> int:
        """The most memory it ever had resident."""
        status = Path(f"/proc/{self._process.pid}/status").read_text()
        found = re.search(r"VmHWM:\s+(\d+) kB", status)
        assert found is not None
        return int(found[1]) * 1024

    def figures(self) -> dict[str, float]:
        """Its folds' own figures, added up over partitions."""
        total: dict[str, float] = {}
        for partition in json.loads(self._get("/status"))["partitions"]:
            for name, value in partition["figures"].items():
                total[name] = total.get(name, 0.0) + value
        return total

    def metric(self, name: str) -> float:
        """A metric's sum over all its labels."""
        lines = self._get("/metrics").decode().splitlines()
        return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith(name + "{"))

    def stop(self) -> None:
        """SIGTERM, SIGKILL when it does not drain."""
        self._process.terminate()
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait(20)

    def _ready(self) -> bool:
        try:
            partitions = json.loads(self._get("/status"))["partitions"]
        except OSError:
            return False
        return bool(partitions) and all(partition["ready"] for partition in partitions)

    def _get(self, path: str) -> bytes:
        with urllib.request.urlopen(self._url + path, timeout=10) as answer:
            body: bytes = answer.read()
            return body
