"""What decides a task's course, and how a limit of all partitions is shared among them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from streams.ai.model_port import TaskType
from topics.specs import AI_RESULTS, AI_TASKS

#: Over which a limit of calls a minute is kept: a call begins up to a second after it is granted.
RATE_WINDOW_MS = 61_000
#: Calls are granted ahead of a free slot, as many as end within this time: so long an outcome takes to free one.
AHEAD_MS = 500


@dataclass(frozen=True)
class Price:
    """Millionths of a currency for a million tokens."""

    prompt: int = 0
    completion: int = 0


@dataclass(frozen=True)
class ModelLimits:
    """Of all partitions together: calls at once, and calls a minute (0: no limit)."""

    concurrency: int = 64
    calls_per_minute: int = 0


@dataclass(frozen=True, kw_only=True)
class AiRules:
    """Times in milliseconds. `models` are the models that may be called; a task type's own is always one of them.

    A batch is `batch_size` tasks, or those that `batch_wait_ms` has brought together; with `eager` it also begins while a
    slot is idle. From the start of work a task has `deadline_ms`, and an attempt ends within `lease_ms`. A call is made at
    most `retries_max` times more after errors, and `lost_max` times after the death of an owner. A finished task is
    remembered for `remember_ms`; of what finished tasks have said all partitions together keep `texts_bytes`.
    """

    partition: int
    partitions: int
    task_types: Mapping[str, TaskType]
    models: Mapping[str, ModelLimits] = field(default_factory=dict)
    prices: Mapping[str, Price] = field(default_factory=dict)
    batch_size: int = 3
    batch_wait_ms: int = 30_000
    eager: bool = True
    deadline_ms: int = 300_000
    lease_ms: int = 600_000
    retries_max: int = 2
    lost_max: int = 20
    segment_chars: int = 12_000
    segment_overlap_chars: int = 200
    remember_ms: int = 7 * 86_400_000
    texts_bytes: int = 256 << 20
    record_bytes_max: int = 1 << 20
    source: str = AI_TASKS
    events: str = AI_RESULTS

    def slots(self, model: str) -> int:
        """This partition's share of the calls at once: its part of the limit, the first ones having the remainder, and
        at least one, so that none starves. A limit below the number of partitions is thus that number."""
        limit, of = self.models[model].concurrency, self.partitions
        return max(1, limit // of + (self.partition < limit % of))

    @property
    def texts_bytes_share(self) -> int:
        """What this partition keeps of the texts of finished tasks."""
        return self.texts_bytes // self.partitions

    def rate(self, model: str) -> tuple[int, int] | None:
        """This partition's share of the calls a minute: so many within so many milliseconds; None without a limit.

        Where the limit is below the number of partitions each has one call in a window as much longer.
        """
        limit, of = self.models[model].calls_per_minute, self.partitions
        if limit == 0:
            return None
        if limit < of:
            return 1, -(-RATE_WINDOW_MS * of // limit)
        return limit // of + (self.partition < limit % of), RATE_WINDOW_MS

    def cost_micros(self, model: str, prompt_tokens: int, completion_tokens: int) -> int:
        """What so many tokens cost, rounded to the nearest millionth."""
        price = self.prices.get(model, Price())
        return (prompt_tokens * price.prompt + completion_tokens * price.completion + 500_000) // 1_000_000
