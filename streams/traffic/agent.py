"""The traffic stream's shell: what the runtime's agent is to fold, and by which rules."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from streams.runtime.worker import StreamSpec
from streams.traffic.core import TrafficRules
from streams.traffic.dedup import DedupIndex
from streams.traffic.fold import TrafficFold
from streams.traffic.spill import SpillFolder
from topics import specs


@dataclass(frozen=True, kw_only=True)
class TrafficOptions:
    """Settings of the stream. `dedup_bytes` is the worker's memory for ids; past it they spill."""

    partitions: int
    retention_h: int
    deadletter_retention_h: int
    max_record_bytes: int
    rules: dict[str, Any]
    dedup_bytes: int
    spill: SpillFolder


def traffic_stream(options: TrafficOptions) -> StreamSpec:
    """The traffic stream for a worker to run."""

    def make_fold(partition: int, partitions: int) -> TrafficFold:
        size = options.max_record_bytes
        rules = TrafficRules(partition=partition, partitions=partitions, max_bytes=size, **options.rules)
        return TrafficFold(rules, DedupIndex(memory_bytes=options.dedup_bytes // partitions, spill=options.spill))

    size = options.max_record_bytes
    return StreamSpec(
        stream="traffic",
        source=specs.TRAFFIC_EVENTS,
        deadletter=specs.TRAFFIC_DEADLETTER,
        topics=(
            specs.source(specs.TRAFFIC_EVENTS, options.partitions, options.retention_h, size),
            specs.deadletter(specs.TRAFFIC_DEADLETTER, options.partitions, options.deadletter_retention_h, size),
        ),
        make_fold=make_fold,
    )
