"""Topics made at start: they are there for whoever asks next."""

from __future__ import annotations

from concurrent.futures import Future
from types import SimpleNamespace
from typing import Any

import pytest
from confluent_kafka import KafkaError, KafkaException

from streams.runtime.admin import TopicAdmin
from topics.specs import compacted


class Broker:
    """An admin client whose broker comes to know a topic only when it was asked for it `late` times."""

    def __init__(self, late: int, code: int = KafkaError.UNKNOWN_TOPIC_OR_PART) -> None:
        self.late, self.code, self.asked = late, code, 0

    def list_topics(self, timeout: float) -> Any:
        return SimpleNamespace(topics={})

    def create_topics(self, news: list[Any], request_timeout: float) -> dict[str, Future[None]]:
        return {new.topic: _done(None) for new in news}

    def describe_topics(self, topics: Any, request_timeout: float) -> dict[str, Future[Any]]:
        self.asked += 1
        if self.asked > self.late:
            return {"made.v1": _done(SimpleNamespace(topic_id="id", partitions=[0]))}
        failed: Future[Any] = Future()
        failed.set_exception(KafkaException(KafkaError(self.code)))
        return {"made.v1": failed}


def _done(value: Any) -> Future[Any]:
    future: Future[Any] = Future()
    future.set_result(value)
    return future


def _admin(broker: Broker, timeout_s: float = 5.0) -> TopicAdmin:
    admin = TopicAdmin({"bootstrap.servers": "127.0.0.1:1"}, 1, timeout_s)
    admin._client = broker
    return admin


async def test_a_topic_that_was_made_is_waited_for_until_the_broker_knows_it() -> None:
    broker = Broker(late=2)
    admin = _admin(broker)
    await admin.ensure([compacted("made.v1", 1)])
    assert broker.asked == 3
    assert (await admin.identify("made.v1")).partitions == 1


@pytest.mark.parametrize(
    ("code", "timeout_s"), [(KafkaError.UNKNOWN_TOPIC_OR_PART, 0.0), (KafkaError.TOPIC_AUTHORIZATION_FAILED, 5.0)]
)
async def test_it_is_not_waited_for_without_end_nor_without_hope(code: int, timeout_s: float) -> None:
    with pytest.raises(KafkaException):
        await _admin(Broker(late=10**6, code=code), timeout_s).ensure([compacted("made.v1", 1)])
