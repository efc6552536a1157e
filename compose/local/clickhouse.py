"""ClickHouse for one machine: the embedded engine behind its HTTP interface, in a process of its own.

`python -m compose.local.clickhouse --path DIR --port N` is that process; `ClickHouse` starts and watches it.
"""

from __future__ import annotations

import argparse
import asyncio
import fcntl
import http.client
import os
import signal
import sys
import time
from pathlib import Path

from compose.local.errors import LocalStackError
from compose.local.server import Server

SHUTDOWN_DEADLINE_S = 5.0

# What ClickHouse's http_max_uri_size allows; clients put statements and parameters there.
MAX_URI_BYTES = 1 << 20


class ClickHouse(Server):
    """The engine and its front. With a password, requests without it are refused."""

    name = "ClickHouse"

    def __init__(
        self,
        folder: Path,
        port: int,
        *,
        user: str = "default",
        password: str = "",
        setting: str = "SLUICEWAY_CLICKHOUSE_URL",
    ) -> None:
        super().__init__(folder, port, setting)
        self._user = user
        self._password = password

    @property
    def url(self) -> str:
        """The HTTP endpoint."""
        return f"http://127.0.0.1:{self.port}"

    def _launch(self, deadline_s: float) -> None:
        if "?" in str(self.folder):
            # The engine takes what follows for options, and would write beside the folder.
            raise LocalStackError(
                f"ClickHouse's engine cannot keep data in {self.folder}: a question mark is in the name. Choose another "
                "folder with SLUICEWAY_DATA_DIR."
            )
        argv = [sys.executable, "-m", "compose.local.clickhouse", "--path", str(self.folder), "--port", str(self.port)]
        # The password goes through a pipe: a command line is for every user of the machine to read.
        self._run([*argv, "--user", self._user], deadline_s, stdin=self._password.encode())

    def answers(self) -> bool:
        """Whether it says that it is there."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=2)
        try:
            connection.request("GET", "/ping")
            return connection.getresponse().status == 200
        except (OSError, http.client.HTTPException):
            return False
        finally:
            connection.close()


def main(argv: list[str] | None = None) -> None:
    """Serve until SIGTERM. The password is read from standard input; an empty one lets everybody in."""
    options = _options(argv)
    password = "" if sys.stdin.isatty() else sys.stdin.read().strip()
    # As ClickHouse's own image has it: a laptop's time zone must not shift the hours of its rows.
    os.environ["TZ"] = "UTC"
    time.tzset()
    options.path.mkdir(parents=True, exist_ok=True)
    with (options.path / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            sys.exit(f"{options.path} is in use: the engine of another process has it. Stop that process.")
        asyncio.run(_serve(options.path, options.host, options.port, options.user, password))


def _options(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m compose.local.clickhouse", description=main.__doc__)
    parser.add_argument("--path", type=Path, required=True, help="folder of the data")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--user", default="default")
    return parser.parse_args(argv)


async def _serve(path: Path, host: str, port: int, user: str, password: str) -> None:
    # Here, not above: the engine takes a second to load, and the parent process does without it.
    from aiohttp import web

    from compose.local.clickhouse_engine import Engine
    from compose.local.clickhouse_http import Account, application

    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    engine = Engine(path / "data", path)
    app = application(engine, Account(user, password), path)
    runner = web.AppRunner(
        app,
        auto_decompress=False,
        max_line_size=MAX_URI_BYTES,
        max_field_size=MAX_URI_BYTES,
        shutdown_timeout=SHUTDOWN_DEADLINE_S,
        access_log=None,
    )
    await runner.setup()
    await web.TCPSite(runner, host, port).start()
    await stop.wait()
    await runner.cleanup()
    engine.close()


if __name__ == "__main__":
    main()
