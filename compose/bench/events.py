"""The topic that a measurement reads: made, filled with generated events, and shown all at once."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from confluent_kafka import Consumer, Producer, TopicPartition

from compose.local.generate import Shape, generate_events
from streams.runtime.admin import TopicAdmin
from topics.specs import TopicSpec

_QUEUE_RECORDS = 100_000
_FILL_TIMEOUT_S = 600
_QUIET = 2  # syslog's "critical": a broker that stops at the end is no news


def make_topics(bootstrap: str, specs: list[TopicSpec]) -> None:
    """Create topics that are missing."""
    asyncio.run(TopicAdmin({"bootstrap.servers": bootstrap}, 1).ensure(specs))


def shape_of(paths: int, duplicates: float) -> Shape:
    """One hour of traffic that ends now."""
    return Shape(end_ms=int(time.time() * 1000), paths=paths, duplicates=duplicates)


@contextmanager
def filled(bootstrap: str, topic: str, seed: int, count: int, shape: Shape) -> Iterator[Filling]:
    """Write `count` events (murmur2 keys, lz4) in one open transaction: nobody reads them before `Filling.show`."""
    filling = Filling(bootstrap, topic)
    filling.write(seed, count, shape)
    try:
        yield filling
    finally:
        filling.close()


class Filling:
    """Events that lie in the log and wait for their commit."""

    def __init__(self, bootstrap: str, topic: str) -> None:
        self._topic = topic
        self._open = True
        self.distinct = 0
        self.value_bytes = 0
        self._producer: Any = Producer(
            {
                "bootstrap.servers": bootstrap,
                "transactional.id": f"bench-{topic}",
                "transaction.timeout.ms": _FILL_TIMEOUT_S * 1000,
                "partitioner": "murmur2_random",
                "compression.type": "lz4",
                "linger.ms": 50,
                "log_level": _QUIET,
            }
        )
        self._producer.init_transactions()
        self._producer.begin_transaction()

    def write(self, seed: int, count: int, shape: Shape) -> None:
        """Generate and send. Raises KafkaException when the broker does not take them."""
        ids: set[bytes] = set()
        for number, (key, value) in enumerate(generate_events(seed, count, shape)):
            self._producer.produce(self._topic, value, key)
            self.value_bytes += len(value)
            if shape.duplicates:
                ids.add(key)
            if number % 1000 == 0:
                while len(self._producer) > _QUEUE_RECORDS:
                    self._producer.poll(0.01)
                self._producer.poll(0)
        self._producer.flush()
        self.distinct = len(ids) or count

    def show(self) -> None:
        """Commit: from now on the events can be read."""
        self._producer.commit_transaction()
        self._open = False

    def close(self) -> None:
        """Give up what was not shown."""
        if self._open:
            self._producer.abort_transaction()


class Positions:
    """Reads how far a group has committed, beside it and without joining it."""

    def __init__(self, bootstrap: str, group: str, topic: str, partitions: int) -> None:
        self._consumer: Any = Consumer(
            {
                "bootstrap.servers": bootstrap,
                "group.id": group,
                "enable.auto.commit": False,
                # The end of all that was written: what is shown a moment later counts as not yet read.
                "isolation.level": "read_uncommitted",
                "log_level": _QUIET,
            }
        )
        self._partitions = [TopicPartition(topic, number) for number in range(partitions)]

    def lag(self) -> int:
        """Offsets between the group's committed positions and the ends of the log, in all partitions."""
        committed = self._consumer.committed(self._partitions, timeout=10)
        ends = (self._consumer.get_watermark_offsets(at, timeout=10)[1] for at in self._partitions)
        return sum(end - max(0, at.offset) for end, at in zip(ends, committed, strict=True))

    def close(self) -> None:
        """Close the client."""
        self._consumer.close()
