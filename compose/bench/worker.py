"""A `sluiceway worker` of its own, and what can be read off it from outside."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from compose.bench.cores import pinned
from compose.bench.process import MeasuredProcess
from compose.figures import total
from compose.settings import Settings


class MeasuredWorker(MeasuredProcess):
    """A `sluiceway worker` child process of one stream, on `core` alone if there is one."""

    def __init__(self, settings: Settings, core: int | None, log_path: Path, stream: str = "traffic") -> None:
        argv = [sys.executable, "-m", "compose.cli", "worker", "--streams", stream, "--child"]
        command = argv if core is None else pinned(core, argv)
        super().__init__("worker", command, settings, f"http://127.0.0.1:{settings.worker_port}", log_path)

    def wait_ready(self) -> None:
        """Return once every partition is taken over. Raises BenchFailed."""
        self.wait(self._ready)

    def figures(self) -> dict[str, float]:
        """Its folds' own figures, added up over partitions."""
        found: dict[str, float] = {}
        for partition in json.loads(self.get("/status"))["partitions"]:
            for name, value in partition["figures"].items():
                found[name] = found.get(name, 0.0) + value
        return found

    def metric(self, name: str) -> float:
        """A metric's sum over all its labels."""
        return total(self.metrics(), name)

    def _ready(self) -> bool:
        try:
            partitions = json.loads(self.get("/status"))["partitions"]
        except OSError:
            return False
        return bool(partitions) and all(partition["ready"] for partition in partitions)
