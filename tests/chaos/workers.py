"""Workers as real processes: started, frozen, killed, drained, and started again when they die."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil

from compose.local.process import dying_with_parent, log_tail
from compose.settings import Settings

ROOT = Path(__file__).resolve().parents[2]
#: A process that was killed is gone by then, seconds.
_GONE_S = 30.0
#: The stream's own process, so that its exit code is seen; SUPERVISED is what an operator starts.
CHILD = ("compose.cli", "worker", "--streams", "traffic", "--child")
SUPERVISED = ("compose.cli", "worker", "--streams", "traffic")


class Worker:
    """One worker. `revive` starts it again at once when it has died, as its supervisor would after a pause."""

    def __init__(self, name: str, settings: Settings, command: Sequence[str] = CHILD, revive: bool = True) -> None:
        self.name = name
        self.settings = settings
        self.revive = revive
        self.codes: list[int] = []
        self.log_path = settings.data_dir / "worker.log"
        self.command = command
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> Worker:
        """Start the process."""
        self.settings.data_dir.mkdir(parents=True, exist_ok=True)
        argv = dying_with_parent([sys.executable, "-m", *self.command], signal.SIGKILL)
        env = {"PATH": os.environ["PATH"], "HOME": str(self.settings.data_dir), **self.settings.environ()}
        with self.log_path.open("ab") as log:
            self._process = subprocess.Popen(argv, cwd=ROOT, env=env, stdout=log, stderr=subprocess.STDOUT)
        return self

    @property
    def pid(self) -> int:
        """The process id of the last start."""
        assert self._process is not None
        return self._process.pid

    @property
    def running(self) -> bool:
        """Whether the process has not ended; a frozen one runs."""
        return self._process is not None and self._process.poll() is None

    @property
    def frozen(self) -> bool:
        """Whether the stream's process is stopped by a signal."""
        return self.running and psutil.Process(self._stream_pid()).status() == psutil.STATUS_STOPPED

    @property
    def rss_bytes(self) -> int:
        """Resident memory of the stream's process; 0 while there is none."""
        try:
            return int(psutil.Process(self._stream_pid()).memory_info().rss)
        except psutil.Error:
            return 0

    def status(self) -> dict[str, Any]:
        """What its status page says; without an answer, that it owns nothing."""
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.settings.worker_port}/status", timeout=2) as page:
                found: dict[str, Any] = json.load(page)
        except OSError:
            return {"partitions": []}
        return found

    def owns(self) -> set[int]:
        """The partitions that it has taken over and folds."""
        return {partition["partition"] for partition in self.status()["partitions"] if partition["ready"]}

    def fired(self) -> set[str]:
        """The planned faults that have happened."""
        scratch = self.settings.data_dir / "faults"
        return {entry.name for entry in scratch.iterdir()} if scratch.exists() else set()

    def planned(self) -> set[str]:
        """The faults of its plan."""
        return set(filter(None, self.settings.faults.split(",")))

    def look(self) -> None:
        """Note an end, and start again if it is to be revived."""
        if self._process is None or self._process.poll() is None:
            return
        self.codes.append(self._process.returncode)
        self._process = None
        if self.revive:
            self.start()

    def signal(self, number: int) -> None:
        """Send a signal to the stream's process."""
        os.kill(self._stream_pid(), number)

    def ended(self, deadline_s: float) -> int:
        """Wait for the process to end by itself; its exit code."""
        assert self._process is not None
        self.revive = False
        self._process.wait(deadline_s)
        self.look()
        return self.codes[-1]

    def drain(self, deadline_s: float = 30.0) -> tuple[int, float]:
        """SIGTERM, then wait: exit code and seconds."""
        assert self._process is not None
        started = time.monotonic()
        self._process.terminate()
        return self.ended(deadline_s), time.monotonic() - started

    def leave(self) -> None:
        """Ask it to end, so that the group need not miss it first; one that is frozen cannot."""
        if self.running and not self.frozen:
            os.kill(self.pid, signal.SIGTERM)

    def kill(self, after_s: float = 0.0) -> None:
        """SIGKILL to all of it unless it has ended by itself within `after_s`, and wait."""
        self.revive = False
        with suppress(subprocess.TimeoutExpired):
            if self._process is not None and after_s:
                self._process.wait(after_s)
        if self._process is None:
            return
        family = [*psutil.Process(self.pid).children(recursive=True)] if self.running else []
        for process in family:
            process.kill()
        self._process.kill()
        self._process.wait(_GONE_S)
        self.look()

    def log(self) -> str:
        """The end of what it logged."""
        return log_tail(self.log_path, 4_000)

    def _stream_pid(self) -> int:
        """The process that runs the stream: a supervisor's only child, or this one."""
        children = psutil.Process(self.pid).children() if self.command == SUPERVISED else []
        return children[0].pid if children else self.pid
