"""The source topic from outside: made, fed, measured, deleted and cut off at its head, as producers and operators do."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, wait
from types import TracebackType
from typing import Any

from confluent_kafka import (
    Consumer,
    ConsumerGroupTopicPartitions,
    IsolationLevel,
    KafkaError,
    KafkaException,
    Producer,
    TopicCollection,
    TopicPartition,
)
from confluent_kafka.admin import (
    AdminClient,
    AlterConfigOpType,
    ConfigEntry,
    ConfigResource,
    NewTopic,
    OffsetSpec,
    ResourceType,
)

from tests.chaos.truth import Record
from topics import specs

GROUP = "sluiceway-traffic"
TOPICS = (specs.TRAFFIC_EVENTS, specs.TRAFFIC_DEADLETTER, specs.changelog_name(GROUP), specs.OWNERS)
#: Where Java's client, and where librdkafka by default, places a key.
JAVA, CRC32 = "murmur2_random", "consistent_random"
_TIMEOUT_S = 60.0
_ASK_S = 5.0
#: When all records must have been read, or sent and acknowledged, seconds.
_ALL_S = 120.0


class Source:
    """`traffic.events.v1` on one broker, with the topics and the group of the stream that reads it."""

    def __init__(self, bootstrap: str, partitions: int) -> None:
        self.bootstrap = bootstrap
        self.partitions = partitions
        self._reader = Consumer(
            {"bootstrap.servers": bootstrap, "group.id": "observer", "enable.auto.commit": False, "log_level": 0}
        )

    def close(self) -> None:
        """Close the connections."""
        self._reader.close()

    def clear(self) -> None:
        """Delete all that the stream keeps in Kafka, and return when it is gone."""
        _until(self._group_deleted, "the group has no members and is deleted")
        self._delete(TOPICS)

    def create(self, **configs: str) -> None:
        """Make the topic as the worker would, with other configs where given; replaces one that a worker made first."""
        spec = specs.source(specs.TRAFFIC_EVENTS, self.partitions, 168, 1_048_576)
        new = NewTopic(spec.name, self.partitions, 1, config={**spec.configs, **configs})
        self._ask(lambda admin: admin.create_topics([new]))[spec.name].result()

    def set_config(self, name: str, value: str) -> None:
        """Change one setting of the topic."""
        entry = ConfigEntry(name, value, incremental_operation=AlterConfigOpType.SET)
        resource = ConfigResource(ResourceType.TOPIC, specs.TRAFFIC_EVENTS, incremental_configs=[entry])
        self._ask(lambda admin: admin.incremental_alter_configs([resource]))[resource].result()

    def make_anew(self) -> None:
        """Delete the topic and make it again: an empty one of the same name, with another id."""
        old = self.topic_id()
        self._delete([specs.TRAFFIC_EVENTS])
        _until(lambda: self._made_after(old), "the topic was made anew")

    def topic_id(self) -> str | None:
        """The topic's id; None while it does not exist."""
        asked = self._ask(lambda admin: admin.describe_topics(TopicCollection([specs.TRAFFIC_EVENTS])))
        try:
            return str(asked[specs.TRAFFIC_EVENTS].result().topic_id)
        except KafkaException as error:
            if error.args[0].code() != KafkaError.UNKNOWN_TOPIC_OR_PART:
                raise
            return None

    def delete_below(self, offset: int) -> None:
        """Remove every partition's records below `offset`, as retention does."""
        at = [TopicPartition(specs.TRAFFIC_EVENTS, p, offset) for p in range(self.partitions)]
        for future in self._ask(lambda admin: admin.delete_records(at)).values():
            future.result()

    def ends(self) -> list[int]:
        """The end offset of each partition."""
        at = [TopicPartition(specs.TRAFFIC_EVENTS, p) for p in range(self.partitions)]
        return [int(self._reader.get_watermark_offsets(tp, timeout=_TIMEOUT_S)[1]) for tp in at]

    def committed(self) -> list[int]:
        """The group's committed offset of each partition; -1001 for none."""
        at = [TopicPartition(specs.TRAFFIC_EVENTS, p) for p in range(self.partitions)]
        request = [ConsumerGroupTopicPartitions(GROUP, at)]
        asked = self._ask(lambda admin: admin.list_consumer_group_offsets(request, require_stable=True))
        found = asked[GROUP].result()
        return [int(tp.offset) for tp in sorted(found.topic_partitions, key=lambda tp: tp.partition)]

    def transaction_open(self) -> bool:
        """Whether a transaction of the stream is open: its records are in the changelog, and not to be read yet."""
        at = [TopicPartition(specs.changelog_name(GROUP), p) for p in range(self.partitions)]
        return self._latest(at, IsolationLevel.READ_COMMITTED) != self._latest(at, IsolationLevel.READ_UNCOMMITTED)

    def records(self, starts: Sequence[int], ends: Sequence[int]) -> list[Record]:
        """What lies between these offsets, partition after partition."""
        found: list[Record] = []
        for partition, (start, end) in enumerate(zip(starts, ends, strict=True)):
            self._reader.assign([TopicPartition(specs.TRAFFIC_EVENTS, partition, start)])
            until = time.monotonic() + _ALL_S
            while start < end:
                assert time.monotonic() < until, f"partition {partition} was read to {start} of {end}"
                for message in self._reader.consume(end - start, timeout=0.2):
                    assert message.error() is None, message.error()
                    found.append(Record(message.key(), message.value()))
                    start = message.offset() + 1
        self._reader.unassign()
        return found

    def send(self, records: Sequence[Record], append_ms: Sequence[int] | None = None) -> None:
        """Produce all, keyed and placed as Java's client does, and return when Kafka has them."""
        with Feeder(self.bootstrap, records, append_ms=append_ms) as feeder:
            feeder.finish()

    def _latest(self, at: Sequence[TopicPartition], isolation: IsolationLevel) -> list[int]:
        latest = {tp: OffsetSpec.latest() for tp in at}
        asked = self._ask(lambda admin: admin.list_offsets(latest, isolation_level=isolation))
        return [int(asked[tp].result().offset) for tp in at]

    def _made_after(self, old: str | None) -> bool:
        try:
            self.create()
        except KafkaException as error:
            # A worker may be quicker; the old one may still be on its way out.
            if error.args[0].code() != KafkaError.TOPIC_ALREADY_EXISTS:
                raise
        return self.topic_id() not in (old, None)

    def _group_deleted(self) -> bool:
        try:
            # A broker that has had no group before may leave the first question unanswered: ask again soon.
            self._ask(lambda admin: admin.delete_consumer_groups([GROUP], request_timeout=_ASK_S))[GROUP].result()
        except KafkaException as error:
            return bool(error.args[0].code() == KafkaError.GROUP_ID_NOT_FOUND)
        return True

    def _ask(self, ask: Callable[[AdminClient], dict[Any, Future[Any]]]) -> dict[Any, Future[Any]]:
        """The answers of a client made for this question: an older one asks a broker that was restarted in vain where
        the group's coordinator is."""
        admin = AdminClient({"bootstrap.servers": self.bootstrap, "log_level": 0})
        asked = ask(admin)
        _, late = wait(asked.values(), _TIMEOUT_S)
        assert not late, f"Kafka did not answer within {_TIMEOUT_S:.0f} s"
        return asked

    def _delete(self, topics: Sequence[str]) -> None:
        for future in self._ask(lambda admin: admin.delete_topics(list(topics))).values():
            try:
                future.result()
            except KafkaException as error:
                if error.args[0].code() != KafkaError.UNKNOWN_TOPIC_OR_PART:
                    raise


class Feeder:
    """Produces records in the background at `rate_s` records a second, so that faults happen under load.

    The last tenth is sent at a twentieth of the rate, so that the load outlasts the faults on a slow machine too. Leave
    the block only after `finish`, which sends the rest at once and raises what went wrong.
    """

    def __init__(
        self,
        bootstrap: str,
        records: Sequence[Record],
        rate_s: float | None = None,
        append_ms: Sequence[int] | None = None,
        partitioner: str = JAVA,
    ) -> None:
        self._records = records
        self._append_ms = append_ms
        self._rate_s = rate_s
        self._failed: list[str] = []
        self._abandoned = False
        self._producer = Producer(
            {
                "bootstrap.servers": bootstrap,
                "partitioner": partitioner,
                "enable.idempotence": True,
                "linger.ms": 5,
                "compression.type": "lz4",
                "queue.buffering.max.messages": 1_000_000,
                "log_level": 0,
            }
        )
        self._thread = threading.Thread(target=self._run, name="feeder", daemon=True)

    def __enter__(self) -> Feeder:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._abandoned = True
        self._join()

    @property
    def done(self) -> bool:
        """Whether every record was handed over and acknowledged."""
        return not self._thread.is_alive()

    def finish(self) -> None:
        """Send the rest without a pause and wait until Kafka has all."""
        self._rate_s = None
        self._join()
        assert not self._failed, f"{len(self._failed)} records were not taken: {self._failed[0]}"

    def _join(self) -> None:
        self._thread.join(_ALL_S)
        assert self.done, f"Kafka did not take the records within {_ALL_S:.0f} s"

    def _run(self) -> None:
        started, sent, chunk = time.monotonic(), 0, 100
        while sent < len(self._records) and not self._abandoned:
            for i in range(sent, min(sent + chunk, len(self._records))):
                self._produce(i)
            sent += chunk
            self._producer.poll(0)
            while self._due_s(sent) > time.monotonic() - started:
                if self._abandoned:
                    return
                time.sleep(0.01)
        while not self._abandoned and self._producer.flush(0.5):
            pass

    def _due_s(self, sent: int) -> float:
        """When so many may be sent, seconds after the start."""
        if self._rate_s is None:
            return 0.0
        slow = max(0.0, sent - 0.9 * len(self._records))
        return (sent - slow + 20 * slow) / self._rate_s

    def _produce(self, i: int) -> None:
        key, value = self._records[i]
        stamp: dict[str, Any] = {} if self._append_ms is None else {"timestamp": self._append_ms[i]}
        self._producer.produce(specs.TRAFFIC_EVENTS, value, key, on_delivery=self._delivered, **stamp)

    def _delivered(self, error: KafkaError | None, message: Any) -> None:
        if error is not None:
            self._failed.append(str(error))


def _until(true: Callable[[], bool], what: str, deadline_s: float = _TIMEOUT_S) -> None:
    end = time.monotonic() + deadline_s
    while not true():
        assert time.monotonic() < end, f"not within {deadline_s:.0f} s: {what}"
        time.sleep(0.05)
