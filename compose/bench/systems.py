"""Other systems on the same broker, the same core and the same events: each a program in tests/bench/systems.

A program gets the broker, a topic, how many events to read and a folder for its state. It prints one line of JSON with the
time from its first event to its last, so that imports, joining a group and making topics are not counted against it.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from compose.bench.cores import pinned
from compose.bench.result import BenchFailed, Line, Quoted, Result, Skipped
from compose.local.process import dying_with_parent

_ROOT = Path(__file__).resolve().parents[2]
PROGRAMS = _ROOT / "tests" / "bench" / "systems"
#: What `make bench` installs the packages of other systems into.
VENV = _ROOT / ".venv-bench"
_TIMEOUT_S = 240


@dataclass(frozen=True)
class System:
    """One program. `events` is how many it is given (0: as many as the full job); slow systems get fewer."""

    name: str
    title: str
    job: str
    program: str
    events: int
    module: str = ""  # a package that only `.venv-bench` has


SYSTEMS = (
    System("bare", "bare loop", "count in memory", "bare_count.py", 0),
    System("bare-dedup", "bare loop", "dedup + count in memory", "bare_dedup.py", 0),
    System("faust", "Faust 0.15.3", "dedup + count, durable", "faust_stock.py", 50_000),
    System("bytewax", "Bytewax 0.21", "dedup + count, durable", "bytewax_dedup.py", 100_000, "bytewax"),
    System("quix", "Quix 3.28", "dedup + count, durable", "quix_dedup.py", 50_000, "quixstreams"),
)

#: What `sluiceway bench ai` measures beside itself.
CELERY = System("celery", "Celery 5.5 on Redis", "calls of a model", "celery_tasks.py", 0, "celery")

#: Measured on two cores (the job on one), the same 2 M events of 220 bytes; JVM systems, which this bench does not run.
QUOTED = tuple(
    Quoted(system, "dedup + count", rate, "measured apart, November 2026, one pinned core, 2 M events of 220 bytes")
    for system, rate in (("Kafka Streams 4.1", 57_000), ("Flink SQL 1.20", 61_000))
)


def measure_system(system: System, core: int, bootstrap: str, topic: str, events: int, folder: Path) -> Line:
    """Run one system's program on `core`."""
    state = folder / system.name
    state.mkdir(parents=True)
    return measure_program(system, [bootstrap, topic, str(events), str(state)], events, core=core)


def measure_program(
    system: System, arguments: Sequence[str], events: int, *, core: int | None = None, job: str = ""
) -> Line:
    """Run one system's program, on `core` if there is one. Never raises for what that system does wrong: it is Skipped with
    its words."""
    python, job = _python(system), job or system.job
    program = PROGRAMS / system.program
    if not program.exists():
        return Skipped(system.title, job, f"{program} is not there: run the bench from a checkout")
    if python is None:
        return Skipped(system.title, job, f"{system.module} is not installed in {VENV.name}; run `make bench`")
    argv = [str(python), str(program), *arguments]
    try:
        line = _run(argv if core is None else pinned(core, argv))
        return _result(system, job, line, events)
    except (BenchFailed, subprocess.TimeoutExpired) as error:
        return Skipped(system.title, job, str(error))


def _python(system: System) -> Path | None:
    if not system.module:
        return Path(sys.executable)
    found = any(VENV.glob(f"lib/python3*/site-packages/{system.module}"))
    return VENV / "bin" / "python" if found else None


def _run(argv: list[str]) -> dict[str, float]:
    done = subprocess.run(dying_with_parent(argv, 9), capture_output=True, text=True, timeout=_TIMEOUT_S)
    lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
    if done.returncode != 0 or not lines:
        raise BenchFailed(f"it ended with code {done.returncode}: {(done.stderr or done.stdout).strip()[-600:]}")
    found: dict[str, float] = json.loads(lines[-1])
    return found


def _result(system: System, job: str, line: dict[str, float], events: int) -> Result:
    if line["counted"] < events:
        raise BenchFailed(f"it counted {line['counted']:,.0f} of {events:,} events")
    return Result(
        system=system.title,
        job=job,
        events=int(line["events"]),
        seconds=line["seconds"],
        cpu_s=line["cpu_s"],
        rss_peak_bytes=int(line["rss_peak_bytes"]),
    )
