"""The order of a run: the full job on a fresh stack, again with many paths, then the other systems on the same broker."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from compose.bench.events import filled, make_topics, shape_of
from compose.bench.full_job import PARTITIONS, Load, Say, measure_full_job
from compose.bench.result import Line, Result
from compose.bench.systems import QUOTED, SYSTEMS, System, measure_system
from compose.local.stack import LocalStack
from topics.specs import source

FULL_JOB = "sluiceway"
MANY_PATHS = "sluiceway-10k-paths"
NAMES = (FULL_JOB, MANY_PATHS, *(system.name for system in SYSTEMS))
PATHS_MANY = 10_000


@dataclass(frozen=True)
class Plan:
    """What to measure: `share` scales down the events of systems that get fewer than the full job, `tuning`
    are settings of the worker."""

    load: Load
    names: list[str]
    share: float = 1.0
    tuning: Mapping[str, Any] = field(default_factory=dict)


def run(plan: Plan, folder: Path, core: int, say: Say) -> Iterator[Line]:
    """Measure one after the other; a line each as it is done. Raises BenchFailed, LocalStackError."""
    if FULL_JOB in plan.names:
        yield _full_job(folder / FULL_JOB, core, plan, say, FULL_JOB)
    if MANY_PATHS in plan.names:
        many = replace(plan, load=replace(plan.load, paths=PATHS_MANY))
        yield _full_job(folder / MANY_PATHS, core, many, say, MANY_PATHS)
    others = [system for system in SYSTEMS if system.name in plan.names]
    if others:
        yield from _others(others, plan, folder, core, say)
    yield from QUOTED


def _full_job(folder: Path, core: int, plan: Plan, say: Say, name: str) -> Result:
    with LocalStack.on_free_ports(folder) as stack:
        result = measure_full_job(stack, core, plan.load, say, plan.tuning)
    return replace(result, system=name)


def _others(systems: list[System], plan: Plan, folder: Path, core: int, say: Say) -> Iterator[Line]:
    with LocalStack.on_free_ports(folder / "others") as stack:
        # Only Kafka is needed, and the other core is its own.
        stack.clickhouse.stop()
        stack.s3.stop()
        for events, group in _by_size(systems, plan).items():
            topic = f"bench.events.{events}"
            say(f"filling {topic}")
            _fill(stack.kafka.bootstrap, topic, replace(plan.load, events=events, duplicates=0.0))
            for system in group:
                say(f"{system.title}: {system.job}")
                yield measure_system(system, core, stack.kafka.bootstrap, topic, events, folder)


def _by_size(systems: list[System], plan: Plan) -> dict[int, list[System]]:
    sizes: dict[int, list[System]] = {}
    for system in systems:
        events = int(system.events * plan.share) or plan.load.events
        sizes.setdefault(events, []).append(system)
    return sizes


def _fill(bootstrap: str, topic: str, load: Load) -> None:
    make_topics(bootstrap, [source(topic, PARTITIONS, retention_h=24, max_record_bytes=1 << 20)])
    with filled(bootstrap, topic, load.seed, load.events, shape_of(load.paths, 0.0)) as filling:
        filling.show()
