"""A small supervisor: one child process a stream, started again with backoff when it dies, drained on SIGTERM."""

from __future__ import annotations

import ctypes
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from types import FrameType

import structlog

log = structlog.get_logger(__name__)

_PR_SET_PDEATHSIG = 1
#: A child that lived this long is healthy again: its next restart does not wait.
_HEALTHY_S = 20.0
_BACKOFF_MAX_S = 10.0
#: A process that was killed is gone by then, unless the kernel holds it, seconds.
_GONE_S = 5.0


def die_with_parent() -> None:
    """Make the kernel send this process SIGTERM when its parent dies, so that no worker outlives its supervisor."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


@dataclass
class Child:
    """One supervised command."""

    name: str
    command: Sequence[str]
    environ: dict[str, str] = field(default_factory=dict)
    process: subprocess.Popen[bytes] | None = None
    started: float = 0.0
    failures: int = 0
    next_start: float = 0.0

    def start(self) -> None:
        """Start the command."""
        self.started = time.monotonic()
        self.process = subprocess.Popen(self.command, env={**os.environ, **self.environ})
        log.info("started", child=self.name, pid=self.process.pid)

    def look(self) -> None:
        """Start it, or start it again, when its time has come."""
        now = time.monotonic()
        if self.process is not None and self.process.poll() is not None:
            code = self.process.returncode
            self.failures = 0 if now - self.started > _HEALTHY_S else self.failures + 1
            pause = min(_BACKOFF_MAX_S, 0.2 * 2**self.failures) * random.uniform(0.5, 1.0)
            log.warning("ended", child=self.name, code=code, again_in_s=round(pause, 1))
            self.process, self.next_start = None, now + pause
        if self.process is None and now >= self.next_start:
            self.start()


class Supervisor:
    """Runs children until SIGTERM or SIGINT, then stops them within `stop_s` seconds."""

    def __init__(self, children: Sequence[Child], stop_s: float) -> None:
        self.children = children
        self._stop_s = stop_s
        self._stopping = False

    def run(self) -> int:
        """Supervise; returns 0 when every child ended cleanly after the stop."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._on_signal)
        while not self._stopping:
            for child in self.children:
                child.look()
            time.sleep(0.1)
        return self.stop()

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self._stopping = True

    def stop(self) -> int:
        """SIGTERM to all, SIGKILL to those that do not end in time; returns the worst exit code."""
        running = [child.process for child in self.children if child.process is not None]
        for process in running:
            process.terminate()
        deadline = time.monotonic() + self._stop_s
        for process in running:
            try:
                process.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                log.error("killed: it did not drain in time", pid=process.pid)
                process.kill()
                with suppress(subprocess.TimeoutExpired):
                    process.wait(_GONE_S)
        # One that had not come to listen for the signal yet had nothing to drain.
        ended = [-signal.SIGKILL if process.returncode is None else process.returncode for process in running]
        codes = [abs(code) for code in ended if code != -signal.SIGTERM]
        return max(codes, default=0)
