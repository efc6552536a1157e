"""What every measured program shares: its arguments, the time from its first event to its last, and its one line."""

from __future__ import annotations

import argparse
import json
import sys
import time
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Arguments:
    """Where to read and how much; `folder` is for the program's own state."""

    bootstrap: str
    topic: str
    events: int
    folder: Path


def arguments() -> Arguments:
    """From the command line: BOOTSTRAP TOPIC EVENTS FOLDER."""
    parser = argparse.ArgumentParser()
    parser.add_argument("bootstrap")
    parser.add_argument("topic")
    parser.add_argument("events", type=int)
    parser.add_argument("folder", type=Path)
    return Arguments(**vars(parser.parse_args()))


class Clock:
    """Wall and CPU time from `start` to `report`; imports and joining a group are before it."""

    def __init__(self) -> None:
        self.started = False

    def start(self) -> None:
        """The first events are there. Later calls change nothing."""
        if not self.started:
            self.started, self._wall, self._cpu = True, time.monotonic(), time.process_time()

    def stop(self) -> None:
        """The last event is done."""
        self._wall, self._cpu = time.monotonic() - self._wall, time.process_time() - self._cpu

    def report(self, events: int, counted: int) -> None:
        """Print the line: `counted` events came through dedup and were added up."""
        line = {
            "events": events,
            "counted": counted,
            "seconds": self._wall,
            "cpu_s": self._cpu,
            "rss_peak_bytes": _rss_peak_bytes(),
        }
        # Not `sys.stdout`: a framework may have put its logger in that place.
        print(json.dumps(line), file=sys.__stdout__, flush=True)


def _rss_peak_bytes() -> int:
    # Not getrusage: its figure is that of the process before exec, where that was larger.
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024
