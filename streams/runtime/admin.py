"""Topics made and checked at start, and the identity of topics: what aiokafka's admin client cannot tell.

Uses librdkafka's admin client in a worker thread; every call has a deadline.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import structlog
from confluent_kafka import KafkaError, KafkaException, TopicCollection, TopicPartition
from confluent_kafka.admin import AdminClient, ConfigEntry, ConfigResource, NewTopic, ResourceType

from topics.specs import TopicSpec

log = structlog.get_logger(__name__)

#: Configs on which a guarantee rests: another value stops the worker. The others are put right.
_VITAL = ("message.timestamp.type", "cleanup.policy")


class TopicRefused(RuntimeError):
    """A topic that the guarantees cannot stand on; the message says what to change."""


@dataclass(frozen=True)
class TopicIdentity:
    """A topic's id, which a re-created topic of the same name does not share, and its partition count."""

    topic_id: str
    partitions: int


class TopicAdmin:
    """Creates, checks and identifies topics."""

    def __init__(self, client_config: dict[str, Any], replication_factor: int, timeout_s: float = 15.0) -> None:
        self._client = AdminClient({"log_level": 0, **client_config})
        self._replication_factor = replication_factor
        self._timeout_s = timeout_s

    async def wait_for_broker(self, deadline_s: float | None = None) -> None:
        """Return once a broker answers; polls with backoff. Raises TimeoutError past `deadline_s` (None: never)."""
        started = time.monotonic()
        pause = 0.2
        while True:
            try:
                await asyncio.to_thread(self._client.list_topics, timeout=5)
                return
            except KafkaException as error:
                waited = time.monotonic() - started
                if deadline_s is not None and waited > deadline_s:
                    raise TimeoutError(f"no Kafka broker answered within {deadline_s:.0f} s: {error}") from error
                if pause >= 5.0:
                    log.warning("waiting for Kafka", waited_s=round(waited), error=str(error))
                await asyncio.sleep(pause)
                pause = min(pause * 2, 5.0)

    async def ensure(self, specs: Sequence[TopicSpec]) -> None:
        """Create the topics that are missing and check the others. Raises TopicRefused."""
        await asyncio.to_thread(self._ensure, specs)

    async def identify(self, topic: str) -> TopicIdentity:
        """The topic's id and partitions. Raises KafkaException, also when it does not exist."""
        return (await asyncio.to_thread(self._identify, [topic]))[0]

    async def partitions(self) -> dict[str, int]:
        """All topics, and how many partitions each has. Raises KafkaException without a broker."""
        found = await asyncio.to_thread(self._client.list_topics, timeout=self._timeout_s)
        return {name: len(topic.partitions) for name, topic in found.topics.items()}

    async def add_partitions(self, topic: str, total: int) -> None:
        """Grow a topic to `total` partitions."""
        from confluent_kafka.admin import NewPartitions

        futures = self._client.create_partitions([NewPartitions(topic, total)], request_timeout=self._timeout_s)
        await asyncio.to_thread(futures[topic].result, self._timeout_s)

    async def delete_before(self, offsets: Mapping[tuple[str, int], int]) -> None:
        """Remove the records of each (topic, partition) that lie before an offset. Raises KafkaException."""
        places = [TopicPartition(topic, partition, offset) for (topic, partition), offset in offsets.items()]
        futures = self._client.delete_records(places, request_timeout=self._timeout_s)
        await asyncio.gather(*(asyncio.to_thread(future.result, self._timeout_s) for future in futures.values()))

    def _identify(self, topics: list[str]) -> list[TopicIdentity]:
        futures = self._client.describe_topics(TopicCollection(topics), request_timeout=self._timeout_s)
        found = [futures[name].result(self._timeout_s) for name in topics]
        return [TopicIdentity(str(topic.topic_id), len(topic.partitions)) for topic in found]

    def _ensure(self, specs: Sequence[TopicSpec]) -> None:
        existing = self._client.list_topics(timeout=self._timeout_s).topics
        self._create([spec for spec in specs if spec.name not in existing])
        self._check([spec for spec in specs if spec.name in existing])

    def _create(self, specs: Sequence[TopicSpec]) -> None:
        if not specs:
            return
        news = [NewTopic(s.name, s.partitions, self._replication_factor, config=s.configs) for s in specs]
        for name, future in self._client.create_topics(news, request_timeout=self._timeout_s).items():
            try:
                future.result(self._timeout_s)
                log.info("topic created", topic=name)
            except KafkaException as error:
                if error.args[0].code() != KafkaError.TOPIC_ALREADY_EXISTS:  # another worker was faster
                    raise
        self._wait_for([spec.name for spec in specs])

    def _wait_for(self, topics: list[str]) -> None:
        """Return when the brokers know of topics that were made: the one that is asked next may hear of them later."""
        deadline = time.monotonic() + self._timeout_s
        while True:
            try:
                self._identify(topics)
                return
            except KafkaException as error:
                unknown = error.args[0].code() == KafkaError.UNKNOWN_TOPIC_OR_PART
                if not unknown or time.monotonic() > deadline:
                    raise
            time.sleep(0.05)

    def _check(self, specs: Sequence[TopicSpec]) -> None:
        for spec in specs:
            actual = self._configs(spec.name)
            wrong = {name: want for name, want in spec.configs.items() if actual.get(name) != want}
            for name in _VITAL:
                if name in wrong:
                    raise TopicRefused(
                        f"topic {spec.name} has {name}={actual.get(name)}; sluiceway needs {wrong[name]}. "
                        f"Change it with kafka-configs --alter --topic {spec.name} --add-config {name}={wrong[name]}"
                    )
            if wrong:
                self._alter(spec.name, wrong)

    def _configs(self, topic: str) -> dict[str, str]:
        resource = ConfigResource(ResourceType.TOPIC, topic)
        future = self._client.describe_configs([resource], request_timeout=self._timeout_s)[resource]
        return {name: entry.value for name, entry in future.result(self._timeout_s).items()}

    def _alter(self, topic: str, configs: dict[str, str]) -> None:
        resource = ConfigResource(
            ResourceType.TOPIC,
            topic,
            incremental_configs=[ConfigEntry(name, value) for name, value in configs.items()],
        )
        self._client.incremental_alter_configs([resource], request_timeout=self._timeout_s)[resource].result(
            self._timeout_s
        )
        log.info("topic settings put right", topic=topic, **{k.replace(".", "_"): v for k, v in configs.items()})


class IdentityGuard:
    """Says whether a topic is still the one that a fold began with, as of a moment not before the question.

    A flush asks after it was sealed: if the id has not changed by then, every record in it came from the old topic.
    Flushes that ask together share one request.
    """

    def __init__(self, admin: TopicAdmin, topic: str) -> None:
        self._admin = admin
        self._topic = topic
        self._lock = asyncio.Lock()
        self._asked_at = -1.0
        self._identity: TopicIdentity | None = None

    async def current(self) -> TopicIdentity:
        """The topic's identity at some moment after this call began."""
        now = time.monotonic()
        async with self._lock:
            if self._identity is None or self._asked_at < now:
                asked_at = time.monotonic()
                # Both at once: a question that fails or is given up must not make an older answer look new.
                self._identity, self._asked_at = await self._admin.identify(self._topic), asked_at
            return self._identity
