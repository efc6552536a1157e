"""What a test tells the stand-in model, and asks it."""

from __future__ import annotations

import json
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from compose.local.model import ModelServer
from compose.local.process import free_port


@contextmanager
def model_server(folder: Path, key: str = "") -> Iterator[ModelServer]:
    """A stand-in of its own."""
    server = ModelServer(folder, free_port(), key=key)
    server.start()
    try:
        yield server
    finally:
        server.stop()


def set_rules(server: ModelServer, *rules: dict[str, Any]) -> None:
    """Have it misbehave as these say (see `compose.local.model_faults.Rule`), and no longer as others did."""
    _ask(server, "PUT", "rules", json.dumps(rules).encode())


def calls(server: ModelServer) -> dict[str, dict[str, Any]]:
    """What it has counted, by `task/call`."""
    found: dict[str, dict[str, Any]] = json.loads(_ask(server, "GET", "calls"))
    return found


def forget_calls(server: ModelServer) -> None:
    """Have it count from nothing."""
    _ask(server, "DELETE", "calls")


def _ask(server: ModelServer, method: str, path: str, body: bytes | None = None) -> bytes:
    url = f"http://127.0.0.1:{server.port}/stand-in/{path}"
    with urllib.request.urlopen(urllib.request.Request(url, body, method=method), timeout=10) as answer:
        said: bytes = answer.read()
    return said
