"""What the servers of the stack have in common: one child process, one port, one folder, one health check."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import ClassVar

from compose.local.errors import DiskFull, StartFailed, says_disk_full
from compose.local.process import Child, check_port

START_DEADLINE_S = 60.0
STOP_DEADLINE_S = 10.0


class Server(ABC):
    """One server. `stop` and `kill` keep its data; `start` goes on with them, on the same port."""

    name: ClassVar[str]

    def __init__(self, folder: Path, port: int, setting: str) -> None:
        self.folder = folder.absolute()
        self.port = port
        self._setting = setting
        self._child: Child | None = None
        self._stop_asked = False

    @property
    def log_path(self) -> Path:
        """Where its own output goes."""
        return self.folder / f"{self.name.lower()}.log"

    @property
    def pid(self) -> int | None:
        """Its process id while it runs."""
        return self._child.pid if self._child else None

    @property
    def alive(self) -> bool:
        """Whether its process runs."""
        return self.pid is not None

    def start(self, deadline_s: float = START_DEADLINE_S) -> None:
        """Start it and wait until it answers; nothing happens if it runs.

        Raises PortTaken, NoNetwork (Kafka's first start), DiskFull or StartFailed.
        """
        if self.alive:
            return
        self._stop_asked = False
        self.check_port()
        try:
            self._launch(deadline_s)
        except OSError as error:
            if says_disk_full(str(error)):
                raise DiskFull(f"{self.name} cannot start: no room left for {self.folder}. Free some disk.") from None
            raise

    @abstractmethod
    def _launch(self, deadline_s: float) -> None:
        """Prepare the folder and call `_run` with the command."""

    @abstractmethod
    def answers(self) -> bool:
        """Whether a client gets an answer now."""

    def check_port(self) -> None:
        """Raise PortTaken if another process has its port."""
        check_port(self.port, self.name, self._setting)

    def _run(
        self,
        argv: Sequence[str],
        deadline_s: float,
        *,
        env: Mapping[str, str] | None = None,
        stdin: bytes | None = None,
    ) -> None:
        """Start the process and wait until it answers."""
        if self._stop_asked:
            raise StartFailed(f"{self.name} was stopped before it started.")
        self._child = Child(self.name, argv, self.log_path, env=env, stdin=stdin)
        self._child.spawn()
        self._child.wait_ready(self.answers, deadline_s)

    def stop(self, deadline_s: float = STOP_DEADLINE_S) -> None:
        """Shut it down cleanly, by force past the deadline."""
        self._stop_asked = True
        if self._child:
            self._child.stop(deadline_s)

    def kill(self) -> None:
        """End it as a crash would (SIGKILL)."""
        if self._child:
            self._child.kill()

    def signal(self, number: int) -> None:
        """Send a signal to its process, such as SIGSTOP and SIGCONT."""
        if self._child:
            self._child.signal(number)
