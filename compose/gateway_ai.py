"""What a gateway needs for AI tasks, made from the settings."""

from __future__ import annotations

import asyncio
from typing import Any

from compose.ai_model import ai_model_names, ai_prompts
from compose.ai_webhooks import webhook_networks
from compose.kafka import ai_publisher, kafka_access
from compose.settings import Settings
from compose.worker import clickhouse
from sinks.clickhouse.queries import ai_task
from sinks.clickhouse.sink import ClickHouseSink
from sinks.errors import SinkRefused, SinkUnavailable
from streams.runtime.owners import OwnersTail
from streams.web.ai.followers import Followers
from streams.web.ai.submission import Asking
from streams.web.ai.tasks import ArchiveAway, Tasks
from streams.web.owner import Owners
from streams.web.tail import TopicTail
from topics.specs import AI_RESULTS

#: How long ClickHouse may take to tell of a task.
ARCHIVE_S = 5.0


class GatewayAi:
    """The parts, and their start and end. Made inside a running event loop."""

    def __init__(self, settings: Settings, announced: OwnersTail) -> None:
        self._publisher = ai_publisher(settings, "gateway")
        self._sink = clickhouse(settings)
        self.followers = Followers()
        self._tail = TopicTail(kafka_access(settings).aiokafka(), AI_RESULTS, self.followers.note)

        def url_of(partition: int) -> str | None:
            owner = announced.owners.get(("ai", partition))
            return owner.url if owner is not None else None

        self._owners = Owners("ai", url_of, self._publisher.partitions)
        archive = _InClickHouse(self._sink)
        self.tasks = Tasks(self._publisher, self._owners, url_of, archive, _asking(settings))

    async def start(self) -> None:
        """Begin to connect; returns at once."""
        await self._publisher.start()
        await self._tail.start()

    async def close(self) -> None:
        """Disconnect."""
        await self._tail.stop()
        await self._owners.close()
        await self._publisher.close()
        await self._sink.close()


def _asking(settings: Settings) -> Asking:
    return Asking(
        task_types=tuple(ai_prompts(settings).task_types),
        models=ai_model_names(settings),
        webhooks=bool(settings.ai_webhook_secret),
        webhook_networks=webhook_networks(settings),
    )


class _InClickHouse:
    """Implements `streams.web.ai.tasks.TaskArchive`."""

    def __init__(self, sink: ClickHouseSink) -> None:
        self._sink = sink

    async def task(self, task_id: str) -> dict[str, Any] | None:
        """See `TaskArchive`."""
        try:
            async with asyncio.timeout(ARCHIVE_S):
                row = await ai_task(self._sink, task_id)
        except (SinkUnavailable, SinkRefused, TimeoutError) as error:
            raise ArchiveAway(f"ClickHouse does not answer ({str(error) or type(error).__name__})") from error
        return None if row is None else _described(row)


def _described(row: dict[str, Any]) -> dict[str, Any]:
    """A row as the task's owner described it."""
    prompt, completion, cost_micros = (row.pop(n) for n in ("prompt_tokens", "completion_tokens", "cost_micros"))
    error_type, error = row.pop("error_type"), row.pop("error")
    return {
        **row,
        "result": row["result"] if row["status"] == "completed" else None,
        "partial": None,
        "error": {"type": error_type, "message": error} if error_type else None,
        "usage": {
            "prompt_tokens": prompt,
            "completion_tokens": completion,
            "total_tokens": prompt + completion,
            "cost": cost_micros / 1_000_000,
        },
    }
