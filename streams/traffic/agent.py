"""The traffic stream's shell: binds the topic to the fold."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import faust

from streams.runtime.transport import BatchSchema
from streams.runtime.worker import StreamSpec
from streams.traffic.core import TrafficRules
from streams.traffic.dedup import DedupIndex
from streams.traffic.fold import TrafficFold
from streams.traffic.spill import SpillFolder
from topics import specs


def bind(app: faust.App, schema: BatchSchema, feed: Callable[[Any], None]) -> None:
    """Register the agent: each item of its stream is one fetch of one partition."""
    source = app.topic(specs.TRAFFIC_EVENTS, schema=schema)

    @app.agent(source, name="traffic")  # type: ignore[untyped-decorator]
    async def fold(stream: Any) -> None:
        async for event in stream.events():
            feed(event.message.value)


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
        bind=bind,
    )
