"""One core for what is measured, the others for everything else."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

import psutil

# Runs in the new process before the program it becomes, so that no thread of it is ever elsewhere.
_PIN = "import os,sys; os.sched_setaffinity(0,[int(sys.argv[1])]); os.execvp(sys.argv[2],sys.argv[2:])"


class TooFewCores(RuntimeError):
    """This machine cannot keep the measured process apart from the servers."""


def reserve_core() -> int:
    """Take the last core out of this process's own and of all its future children's; returns it.

    Raises TooFewCores where there is only one, or where processes cannot be pinned.
    """
    if not hasattr(os, "sched_setaffinity"):
        raise TooFewCores("processes cannot be pinned to a core on this system; run the bench on Linux")
    *others, core = sorted(os.sched_getaffinity(0))
    if not others:
        raise TooFewCores("the bench wants two cores: one for the fold, one for Kafka and ClickHouse")
    os.sched_setaffinity(0, others)
    return core


def pinned(core: int, argv: Sequence[str]) -> list[str]:
    """`argv` as a command that runs on `core` alone."""
    return [sys.executable, "-I", "-S", "-c", _PIN, str(core), *argv]


def busy_s(core: int) -> float:
    """Seconds that `core` has worked since the machine started, for whomever."""
    times = psutil.cpu_times(percpu=True)[core]
    return float(sum(times) - times.idle - getattr(times, "iowait", 0.0) - getattr(times, "guest", 0.0))
