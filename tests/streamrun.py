"""One stream's worker processes on the real stack, and what is seen of them from outside: the part that all streams share."""

from __future__ import annotations

import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import clickhouse_connect
from confluent_kafka import Consumer, KafkaError, KafkaException, TopicPartition
from confluent_kafka.admin import AdminClient

from compose.local.stack import LocalStack
from compose.settings import Settings
from tests.chaos.workers import Worker
from topics import specs

DEADLINE_S = 90.0


@dataclass
class StreamRun:
    """Workers on the stack, with a database of their own. `settings` are the first one's."""

    stack: LocalStack
    settings: Settings
    workers: list[Worker]

    @property
    def worker(self) -> Worker:
        """The first one."""
        return self.workers[0]

    def look(self) -> None:
        """Start dead workers again."""
        for worker in self.workers:
            worker.look()

    def until(self, true: Callable[[], bool], what: str, deadline_s: float = DEADLINE_S) -> None:
        """Poll until `true`, starting dead workers again."""
        started = time.monotonic()
        while not true():
            self.look()
            assert time.monotonic() - started < deadline_s, f"not within {deadline_s:.0f} s: {what}\n{self.logs()}"
            time.sleep(0.1)

    def logs(self) -> str:
        """The end of every worker's log."""
        return "\n".join(f"--- {w.name}, exit codes {w.codes}, running {w.running}\n{w.log()}" for w in self.workers)

    def ask(self, path: str, worker: Worker | None = None) -> tuple[int, bytes]:
        """Status and body of a worker's own endpoint, the first one's by default; 0 when it does not answer."""
        port = (worker or self.worker).settings.worker_port
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=3) as page:
                return page.status, page.read()
        except urllib.error.HTTPError as error:
            return error.code, error.read()
        except OSError:
            return 0, b""

    def read(self, topic: str) -> list[tuple[bytes, bytes, dict[str, bytes]]]:
        """What a read_committed reader sees of a topic."""
        reader = Consumer(
            {
                "bootstrap.servers": self.stack.kafka.bootstrap,
                "group.id": "look",
                "enable.auto.commit": False,
                "enable.partition.eof": True,
                "isolation.level": "read_committed",
                "auto.offset.reset": "earliest",
                # An end is told by an empty fetch, which the broker would else hold back for half a second.
                "fetch.wait.max.ms": 5,
            }
        )
        found: dict[int, list[tuple[bytes, bytes, dict[str, bytes]]]] = {}
        try:
            found = {partition: [] for partition in sorted(reader.list_topics(topic, 10).topics[topic].partitions)}
            reader.assign([TopicPartition(topic, partition, 0) for partition in found])
            left = set(found)
            while left and (message := reader.poll(10)) is not None:
                if message.error() is None:
                    record = (message.key(), message.value(), dict(message.headers() or []))
                    found[message.partition()].append(record)
                elif message.error().code() == KafkaError._PARTITION_EOF:
                    left.discard(message.partition())
        finally:
            reader.close()
        return [record for records in found.values() for record in records]

    def rows(self, sql: str) -> list[tuple[Any, ...]]:
        """Rows of a query."""
        client = clickhouse_connect.get_client(
            host="127.0.0.1", port=self.stack.clickhouse.port, database=self.settings.clickhouse_database
        )
        try:
            return [tuple(row) for row in client.query(sql).result_rows]
        finally:
            client.close()


@contextmanager
def emptied(stack: LocalStack, stream: str, *topics: str) -> Iterator[None]:
    """Before and after it the stream's topics and group are gone; at its end all servers run."""
    group = f"sluiceway-{stream}"
    own = (*topics, specs.changelog_name(group), specs.OWNERS)
    _clear(stack.kafka.bootstrap, own, group)
    try:
        yield
    finally:
        for server in stack.servers:
            server.start()
        _clear(stack.kafka.bootstrap, own, group)


def end(workers: Sequence[Worker]) -> None:
    """Have workers leave, and kill those that do not."""
    for worker in workers:
        worker.leave()
    for worker in workers:
        worker.kill(after_s=5.0)


def _clear(bootstrap: str, topics: Sequence[str], group: str) -> None:
    admin = AdminClient({"bootstrap.servers": bootstrap})
    for future in [*admin.delete_topics(list(topics)).values(), *admin.delete_consumer_groups([group]).values()]:
        try:
            future.result(20)
        except KafkaException:
            pass
    deadline = time.monotonic() + 20
    while set(topics) & set(admin.list_topics(timeout=10).topics):
        assert time.monotonic() < deadline
        time.sleep(0.1)
