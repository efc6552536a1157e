"""Who follows the owners of partitions before any worker has run."""

from __future__ import annotations

import time
import uuid
from typing import Any

import pytest
from aiokafka import AIOKafkaProducer
from aiokafka.client import AIOKafkaClient

from compose.local.stack import LocalStack
from streams.runtime import owners
from streams.runtime.admin import TopicAdmin
from streams.runtime.owners import OwnersTail, announcement
from tests.waiting import until
from topics import specs

pytestmark = pytest.mark.stack


async def test_a_topic_that_is_not_there_yet_is_asked_for_in_peace(
    stack: LocalStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    topic, clients = f"owners-{uuid.uuid4().hex[:8]}", {"bootstrap_servers": stack.kafka.bootstrap}
    monkeypatch.setattr(owners, "OWNERS", topic)
    asked, update = [0.0], AIOKafkaClient._metadata_update

    async def noted(self: AIOKafkaClient, *arguments: Any) -> Any:
        asked.append(time.monotonic())
        return await update(self, *arguments)

    monkeypatch.setattr(AIOKafkaClient, "_metadata_update", noted)
    tail = OwnersTail(clients)
    await tail.start()
    await until(lambda: len(asked) > 4)
    assert asked[4] - asked[1] > 0.9
    await TopicAdmin({"bootstrap.servers": stack.kafka.bootstrap}, 1).ensure([specs.compacted(topic, 1)])
    async with AIOKafkaProducer(**clients) as producer:
        said = announcement("traffic", 3, "http://127.0.0.1:1", 1)
        await producer.send_and_wait(topic, said.value, said.key)
    await until(lambda: ("traffic", 3) in tail.owners)
    await tail.stop()
