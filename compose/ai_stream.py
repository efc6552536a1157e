"""The AI stream as the settings have it: what may be called, how often, and what is told of it."""

from __future__ import annotations

import msgspec

from compose.ai_model import ai_model, ai_model_names, ai_prices, ai_prompts
from compose.ai_webhooks import ai_webhooks
from compose.settings import PREFIX, SettingError, Settings
from sinks.backoff import Backoff
from sinks.clickhouse.queries import ai_task_texts
from sinks.clickhouse.sink import ClickHouseSink
from sinks.errors import SinkRefused, SinkUnavailable
from streams.ai.agent import AiOptions, ai_stream
from streams.ai.letting_go import Texts, TextsAway
from streams.ai.outside import OutsideLimits, World
from streams.ai.rules import ModelLimits
from streams.ai.segments import split
from streams.runtime.worker import StreamSpec
from topics.ai import MAX_RECORD_BYTES


def ai(settings: Settings, sink: ClickHouseSink) -> StreamSpec:
    """The AI stream for a worker to run."""
    prompts = ai_prompts(settings)
    rules = {
        "task_types": prompts.task_types,
        "models": ai_limits(settings),
        "prices": ai_prices(settings),
        "batch_size": settings.ai_batch_size,
        "batch_wait_ms": _ms(settings.ai_batch_wait_s),
        "eager": settings.ai_eager,
        "deadline_ms": _ms(settings.ai_deadline_s),
        "lease_ms": _ms(settings.ai_lease_s),
        "retries_max": settings.ai_retries,
        "segment_chars": settings.ai_segment_chars,
        "segment_overlap_chars": settings.ai_segment_overlap_chars,
        "remember_ms": _ms(settings.ai_remember_h * 3600),
        "texts_bytes": settings.ai_texts_mb << 20,
    }
    limits = OutsideLimits(block_s=settings.ai_block_s, backoff_s=Backoff(2.0, 30.0).delay_s)
    return ai_stream(
        AiOptions(
            partitions=settings.partitions,
            retention_h=settings.ai_retention_h,
            events_retention_h=settings.ai_events_retention_h,
            deadletter_retention_h=settings.deadletter_retention_h,
            record_bytes_max=MAX_RECORD_BYTES,
            rules=rules,
            split=split,
            world=World(ai_model(settings), prompts, ai_webhooks(settings), limits, msgspec.json.encode),
            texts=_TextsInClickHouse(sink),
        )
    )


def ai_limits(settings: Settings) -> dict[str, ModelLimits]:
    """What each model that may be called takes, of all workers together. Raises SettingError for a limit that is none."""
    limits = dict.fromkeys(ai_model_names(settings), ModelLimits(settings.ai_concurrency, settings.ai_calls_per_minute))
    for pair in filter(None, (part.strip() for part in settings.ai_limits.split(","))):
        name, _, text = pair.partition("=")
        concurrency, _, per_minute = text.partition("/")
        if name not in limits or not concurrency.isdecimal() or not per_minute.isdecimal() or int(concurrency) < 1:
            known = ", ".join(limits)
            raise SettingError(f"{PREFIX}AI_LIMITS: {pair} is not of the form NAME=64/600, with a NAME of {known}")
        limits[name] = ModelLimits(int(concurrency), int(per_minute))
    return limits


class _TextsInClickHouse:
    """Implements `streams.ai.letting_go.LetGoTexts`."""

    def __init__(self, sink: ClickHouseSink) -> None:
        self._sink = sink

    async def texts(self, task_id: str) -> Texts:
        """See `LetGoTexts`."""
        try:
            found = await ai_task_texts(self._sink, task_id)
        except (SinkUnavailable, SinkRefused) as error:
            raise TextsAway(str(error)) from error
        if found is None:
            raise TextsAway(f"ClickHouse has no row of task {task_id}")
        return Texts(*found)


def _ms(seconds: float) -> int:
    return round(seconds * 1000)
