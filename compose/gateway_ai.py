"""What a gateway needs for AI tasks, made from the settings."""

from __future__ import annotations

import sqlite3

import structlog

from compose.ai_model import ai_model, ai_model_names, ai_prompts
from compose.ai_stream import ai_limits
from compose.ai_webhooks import webhook_networks
from compose.archived import InClickHouse
from compose.clients import clickhouse
from compose.kafka import ai_publisher, kafka_access
from compose.settings import Settings
from sinks.backoff import Backoff
from streams.ai.model_port import Model
from streams.ai.segments import split
from streams.runtime.owners import OwnersTail
from streams.web.ai.direct import DirectRules, DirectWork
from streams.web.ai.followers import Followers
from streams.web.ai.journal import JournalFull
from streams.web.ai.keeper import Keeper
from streams.web.ai.submission import Asking
from streams.web.ai.tasks import Tasks
from streams.web.owner import Owners
from streams.web.tail import TopicTail
from topics.ai import MAX_RECORD_BYTES
from topics.specs import AI_RESULTS

log = structlog.get_logger(__name__)


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
        self._model = ai_model(settings)
        self._journal = Keeper(settings.data_dir / "journal", self._publisher, _direct_work(settings, self._model))
        archive = InClickHouse(self._sink)
        self.tasks = Tasks(self._publisher, self._owners, url_of, archive, _asking(settings), self._journal)

    async def start(self) -> None:
        """Begin to connect, and go on with what the journal holds. Without a place for it there is none."""
        try:
            await self._journal.start()
        except (JournalFull, OSError, sqlite3.Error) as error:
            log.error("no_journal", error=str(error), hint="while Kafka is away tasks are refused")
            self.tasks.journal = None
        await self._publisher.start()
        await self._tail.start()

    async def close(self) -> None:
        """Disconnect."""
        await self._tail.stop()
        await self._journal.close()
        await self._model.close()
        await self._owners.close()
        await self._publisher.close()
        await self._sink.close()


def _direct_work(settings: Settings, model: Model) -> DirectWork:
    limits = ai_limits(settings)
    return DirectWork(
        model,
        ai_prompts(settings),
        DirectRules(
            models={name: (limit.concurrency, limit.calls_per_minute) for name, limit in limits.items()},
            split=lambda text: split(text, settings.ai_segment_chars, settings.ai_segment_overlap_chars),
            deadline_s=settings.ai_deadline_s,
            retries_max=settings.ai_retries,
            record_bytes_max=MAX_RECORD_BYTES,
            pause_s=Backoff(2.0, 30.0).delay_s,
        ),
    )


def _asking(settings: Settings) -> Asking:
    return Asking(
        task_types=tuple(ai_prompts(settings).task_types),
        models=ai_model_names(settings),
        webhooks=bool(settings.ai_webhook_secret),
        webhook_networks=webhook_networks(settings),
    )
