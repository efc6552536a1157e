"""Debian's redis-server, for systems that keep their queue in it."""

from __future__ import annotations

import shutil
import socket
from pathlib import Path

from compose.local.process import free_port
from compose.local.server import Server


class Redis(Server):
    """One on a free loopback port, that appends to its file every second, as it is set up where a queue is to be kept."""

    name = "Redis"

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, free_port(), "a free port")

    @staticmethod
    def installed() -> bool:
        """Whether there is one to be started."""
        return shutil.which("redis-server") is not None

    @property
    def url(self) -> str:
        """What a client takes."""
        return f"redis://127.0.0.1:{self.port}/0"

    def _launch(self, deadline_s: float) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        options = {"--port": str(self.port), "--bind": "127.0.0.1", "--dir": str(self.folder), "--save": ""}
        options |= {"--appendonly": "yes", "--appendfsync": "everysec"}
        argv = [part for option in options.items() for part in option]
        self._run(["redis-server", *argv], deadline_s)

    def answers(self) -> bool:
        """Whether it answers a PING."""
        try:
            with socket.create_connection(("127.0.0.1", self.port), timeout=2) as connection:
                connection.sendall(b"PING\r\n")
                return connection.recv(16).startswith(b"+PONG")
        except OSError:
            return False
