"""A `sluiceway gateway` of its own, and what can be read off it from outside."""

from __future__ import annotations

import sys
from pathlib import Path

from compose.bench.process import MeasuredProcess
from compose.settings import Settings


class MeasuredGateway(MeasuredProcess):
    """A gateway on the port that the settings name."""

    def __init__(self, settings: Settings, log_path: Path) -> None:
        argv = [sys.executable, "-m", "compose.cli", "gateway"]
        super().__init__("gateway", argv, settings, f"http://127.0.0.1:{settings.gateway_port}", log_path)

    def wait_ready(self) -> None:
        """Return once it takes what it is there for. Raises BenchFailed."""
        self.wait(self._ready)

    def _ready(self) -> bool:
        try:
            return bool(self.get("/api/ready"))
        except OSError:
            return False
