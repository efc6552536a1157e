"""A process that is measured: started with its settings, and what can be read off it from outside."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import time
import urllib.request
from collections.abc import Callable, Sequence
from pathlib import Path

import psutil

from compose.bench.result import BenchFailed
from compose.local.process import dying_with_parent, log_tail
from compose.settings import Settings

READY_S = 60.0


class MeasuredProcess:
    """A child process that serves HTTP at `url`; `name` is for messages."""

    def __init__(self, name: str, argv: Sequence[str], settings: Settings, url: str, log_path: Path) -> None:
        self.name = name
        self.url = url
        self.settings = settings
        self._log_path = log_path
        command = dying_with_parent(argv, signal.SIGKILL)
        with log_path.open("ab") as log:
            self._process = subprocess.Popen(
                command, env={**os.environ, **settings.environ()}, stdout=log, stderr=subprocess.STDOUT
            )

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    def wait(self, ready: Callable[[], bool]) -> None:
        """Return once it is ready. Raises BenchFailed."""
        deadline = time.monotonic() + READY_S
        while not ready():
            self.check()
            if time.monotonic() > deadline:
                raise BenchFailed(f"the {self.name} was not ready within {READY_S:.0f} s; see {self._log_path}")
            time.sleep(0.1)

    def check(self) -> None:
        """Raise BenchFailed if the process has ended."""
        if self._process.poll() is not None:
            tail = log_tail(self._log_path)
            raise BenchFailed(f"the {self.name} ended with code {self._process.returncode}:\n{tail}")

    def cpu_s(self) -> float:
        """User and system seconds of all its threads so far."""
        return cpu_s(self.pid)

    def rss_bytes(self) -> int:
        """What it has resident now."""
        return int(psutil.Process(self.pid).memory_info().rss)

    def rss_peak_bytes(self) -> int:
        """The most memory it ever had resident."""
        return rss_peak_bytes(self.pid)

    def get(self, path: str) -> bytes:
        """What it answers. Raises OSError."""
        with urllib.request.urlopen(self.url + path, timeout=10) as answer:
            body: bytes = answer.read()
            return body

    def metrics(self) -> str:
        """Its Prometheus metrics."""
        return self.get("/metrics").decode()

    def stop(self) -> None:
        """SIGTERM, SIGKILL when it does not drain."""
        self._process.terminate()
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait(20)


def cpu_s(pid: int) -> float:
    """User and system seconds of a process."""
    times = psutil.Process(pid).cpu_times()
    return float(times.user + times.system)


def rss_peak_bytes(pid: int) -> int:
    """The most memory a process ever had resident, as the kernel saw it."""
    status = Path(f"/proc/{pid}/status").read_text()
    found = re.search(r"VmHWM:\s+(\d+) kB", status)
    assert found is not None
    return int(found[1]) * 1024
