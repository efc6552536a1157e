"""A stand-in for a model, for one machine: OpenAI's chat-completions protocol with answers that are no answers.

`python -m compose.local.model --port N` is its process; `ModelServer` starts and watches it.
"""

from __future__ import annotations

import argparse
import asyncio
import http.client
import signal
import sys
from pathlib import Path

from compose.local.server import Server

SHUTDOWN_DEADLINE_S = 2.0


class ModelServer(Server):
    """The stand-in. With a key, requests without it are refused. What it counts and its rules end with its process."""

    name = "Model"

    def __init__(self, folder: Path, port: int, *, key: str = "", setting: str = "SLUICEWAY_AI_BASE_URL") -> None:
        super().__init__(folder, port, setting)
        self._key = key

    @property
    def url(self) -> str:
        """What an OpenAI client takes as its base URL."""
        return f"http://127.0.0.1:{self.port}/v1"

    def _launch(self, deadline_s: float) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        argv = [sys.executable, "-m", "compose.local.model", "--port", str(self.port)]
        # The key goes through a pipe: a command line is for every user of the machine to read.
        self._run(argv, deadline_s, stdin=self._key.encode())

    def answers(self) -> bool:
        """Whether it answers; a refusal for want of a key is an answer."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=2)
        try:
            connection.request("GET", "/v1/models")
            return connection.getresponse().status < 500
        except (OSError, http.client.HTTPException):
            return False
        finally:
            connection.close()


def main(argv: list[str] | None = None) -> None:
    """Serve until SIGTERM. The key is read from standard input; an empty one lets everybody in."""
    parser = argparse.ArgumentParser(prog="python -m compose.local.model", description=main.__doc__)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--host", default="127.0.0.1")
    options = parser.parse_args(argv)
    key = "" if sys.stdin.isatty() else sys.stdin.read().strip()
    asyncio.run(_serve(options.host, options.port, key))


async def _serve(host: str, port: int, key: str) -> None:
    # Here, not above: the parent process does without it.
    from aiohttp import web

    from compose.local.model_http import application

    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    # A request that hangs on purpose ends when its client leaves.
    runner = web.AppRunner(
        application(key), access_log=None, shutdown_timeout=SHUTDOWN_DEADLINE_S, handler_cancellation=True
    )
    await runner.setup()
    await web.TCPSite(runner, host, port).start()
    await stop.wait()
    await runner.cleanup()


if __name__ == "__main__":
    main()
