"""The AI stream's shell: what the runtime's agent is to fold, by which rules, and what it calls."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from streams.ai.fold import AiFold
from streams.ai.letting_go import LetGoTexts
from streams.ai.outside import AiOutside, World
from streams.ai.routes import AiRoutes
from streams.ai.rules import AiRules
from streams.ai.state import Split
from streams.runtime.worker import StreamSpec
from topics import specs


@dataclass(frozen=True, kw_only=True)
class AiOptions:
    """Settings of the stream. `rules` are those of `AiRules` that no partition has its own of."""

    partitions: int
    retention_h: int
    events_retention_h: int
    deadletter_retention_h: int
    record_bytes_max: int
    rules: dict[str, Any]
    split: Split
    world: World
    texts: LetGoTexts


def ai_stream(options: AiOptions) -> StreamSpec:
    """The AI stream for a worker to run."""
    size, partitions = options.record_bytes_max, options.partitions

    def make_fold(partition: int, of: int) -> AiFold:
        rules = AiRules(partition=partition, partitions=of, record_bytes_max=size, **options.rules)
        return AiFold(rules, options.split)

    return StreamSpec(
        stream="ai",
        source=specs.AI_TASKS,
        deadletter=specs.AI_DEADLETTER,
        topics=(
            specs.source(specs.AI_TASKS, partitions, options.retention_h, size),
            specs.outcomes(specs.AI_RESULTS, partitions, options.events_retention_h),
            specs.deadletter(specs.AI_DEADLETTER, partitions, options.deadletter_retention_h, size),
        ),
        make_fold=make_fold,
        make_outside=lambda seat, fold: AiOutside(seat, options.world, fold),
        routes=lambda worker: AiRoutes(worker, options.texts).all(),
    )
