"""One child process of the stack: started so that it dies with its parent, logged to a file, stopped by a deadline."""

from __future__ import annotations

import functools
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from compose.local.errors import DiskFull, PortTaken, StartFailed, says_disk_full

LOG_ROTATE_BYTES = 10_000_000
LOG_TAIL_BYTES = 3_000
#: A process that was killed is gone by then, unless the kernel holds it, seconds.
GONE_S = 10.0

# Runs between fork and exec in a fresh interpreter, because code run in a forked copy of a threaded parent can deadlock.
# The parent is looked at after prctl: one that died before it would never be noticed.
_DIE_WITH_PARENT = (
    "import ctypes,os,sys\n"
    "parent,sig=int(sys.argv[1]),int(sys.argv[2])\n"
    "ctypes.CDLL(None).prctl(1,sig)\n"
    "os.getppid()==parent or sys.exit(1)\n"
    "os.execvp(sys.argv[3],sys.argv[3:])\n"
)


def dying_with_parent(argv: Sequence[str], death_signal: int = signal.SIGTERM) -> list[str]:
    """`argv` as a command that gets `death_signal` when the thread that starts it ends (on Linux; elsewhere unchanged)."""
    if sys.platform != "linux":
        return list(argv)
    return [sys.executable, "-I", "-S", "-c", _DIE_WITH_PARENT, str(os.getpid()), str(int(death_signal)), *argv]


@functools.cache
def _spawner() -> ThreadPoolExecutor:
    """The one thread that starts children: Linux delivers the parent-death signal when the starting *thread* ends."""
    return ThreadPoolExecutor(max_workers=1, thread_name_prefix="spawner")


def free_port(host: str = "127.0.0.1") -> int:
    """A TCP port that nothing listens on at this moment."""
    with socket.socket() as probe:
        probe.bind((host, 0))
        port: int = probe.getsockname()[1]
    return port


def check_port(port: int, what: str, setting: str, host: str = "127.0.0.1", deadline_s: float = 2.0) -> None:
    """Raise PortTaken if `port` cannot be bound; waits `deadline_s` for a predecessor that is just ending."""
    until = time.monotonic() + deadline_s
    while not _can_bind(host, port):
        if time.monotonic() > until:
            raise PortTaken(
                f"{what} cannot listen on {host}:{port}: another process has the port. "
                f"Stop that process, or choose another port with {setting}."
            )
        time.sleep(0.1)


def _can_bind(host: str, port: int) -> bool:
    with socket.socket() as probe:
        # As the servers do themselves: connections of a predecessor in TIME_WAIT are no obstacle.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError:
            return False
    return True


class Child:
    """A child process by name. `argv` is run as it is; its output is appended to `log_path`."""

    def __init__(
        self,
        name: str,
        argv: Sequence[str],
        log_path: Path,
        *,
        env: Mapping[str, str] | None = None,
        stdin: bytes | None = None,
    ) -> None:
        self.name = name
        self.log_path = log_path
        self._argv = list(argv)
        self._env = env
        self._stdin = stdin
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int | None:
        """The process id while it runs."""
        return self._process.pid if self._process is not None and self._process.poll() is None else None

    @property
    def alive(self) -> bool:
        """Whether the process runs."""
        return self.pid is not None

    def spawn(self) -> None:
        """Start the process and return at once."""
        assert not self.alive, f"{self.name} runs already"
        self.log_path.parent.mkdir(parents=True, exist_ok=True)
        if self.log_path.exists() and self.log_path.stat().st_size > LOG_ROTATE_BYTES:
            self.log_path.replace(self.log_path.with_suffix(".log.1"))
        self._process = _spawner().submit(self._popen).result()

    def _popen(self) -> subprocess.Popen[bytes]:
        argv = dying_with_parent(self._argv, signal.SIGKILL)
        stdin = subprocess.DEVNULL if self._stdin is None else subprocess.PIPE
        with self.log_path.open("ab") as log:
            # A session of its own: Ctrl-C reaches the parent alone, which stops its children in order.
            process = subprocess.Popen(
                argv, stdin=stdin, stdout=log, stderr=subprocess.STDOUT, env=self._env, start_new_session=True
            )
        if self._stdin is not None:
            assert process.stdin is not None
            process.stdin.write(self._stdin)
            process.stdin.close()
        return process

    def wait_ready(self, answers: Callable[[], bool], deadline_s: float) -> None:
        """Poll `answers` until it is true. Raises StartFailed with the log's tail if the process ends or time runs out."""
        until = time.monotonic() + deadline_s
        while not answers():
            if not self.alive:
                raise self._failure(f"ended with code {self._process.returncode if self._process else None}")
            if time.monotonic() > until:
                self.kill()
                raise self._failure(f"did not answer within {deadline_s:g} s")
            time.sleep(0.05)

    def _failure(self, what: str) -> StartFailed | DiskFull:
        tail = log_tail(self.log_path)
        # On a full disk the reason itself may be what no longer fitted into the log.
        if says_disk_full(tail) or shutil.disk_usage(self.log_path.parent).free < LOG_TAIL_BYTES:
            return DiskFull(f"{self.name} {what}: its disk is full. Free some and start again. Log: {self.log_path}")
        return StartFailed(f"{self.name} {what}. The end of {self.log_path}:\n{tail}")

    def stop(self, deadline_s: float = 10.0) -> None:
        """SIGTERM, then SIGKILL past the deadline. Nothing happens if it does not run."""
        if self._process is None or self._process.poll() is not None:
            return
        self._process.terminate()
        try:
            self._process.wait(deadline_s)
        except subprocess.TimeoutExpired:
            self.kill()

    def kill(self) -> None:
        """SIGKILL, and wait until it is gone. Raises subprocess.TimeoutExpired if the kernel does not let it go."""
        if self._process is not None and self._process.poll() is None:
            self._process.kill()
            self._process.wait(GONE_S)

    def signal(self, number: int) -> None:
        """Send a signal such as SIGSTOP or SIGCONT to the running process."""
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(number)


def log_tail(path: Path, size_bytes: int = LOG_TAIL_BYTES) -> str:
    """The last bytes of a log file as text; empty if there is none."""
    try:
        with path.open("rb") as log:
            log.seek(max(0, path.stat().st_size - size_bytes))
            return log.read().decode("utf-8", "replace").strip()
    except FileNotFoundError:
        return ""
