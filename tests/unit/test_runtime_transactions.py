"""In which order one flush's transaction asks Kafka for things."""

from __future__ import annotations

import asyncio
from typing import Any

from aiokafka import AIOKafkaProducer, TopicPartition

from streams.runtime.faults import Faults
from streams.runtime.transactions import MAX_BATCH_BYTES, PartitionProducer
from topics.records import Emit

SOURCE = TopicPartition("source", 0)


async def _producer(asked: list[str], monkeypatch: Any) -> PartitionProducer:
    """One that notes what it asks for instead of asking."""

    def noting(name: str, answer: Any = None) -> Any:
        async def note(*_: Any, **__: Any) -> Any:
            asked.append(name)
            return answer

        return note

    sent = asyncio.get_running_loop().create_future()
    sent.set_result(None)
    make = AIOKafkaProducer.create_batch
    monkeypatch.setattr(AIOKafkaProducer, "create_batch", lambda own: asked.append("make") or make(own))
    monkeypatch.setattr(AIOKafkaProducer, "begin_transaction", noting("begin"))
    monkeypatch.setattr(AIOKafkaProducer, "send_offsets_to_transaction", noting("offsets"))
    monkeypatch.setattr(AIOKafkaProducer, "send_batch", noting("send", sent))
    monkeypatch.setattr(AIOKafkaProducer, "commit_transaction", noting("commit"))
    return PartitionProducer("id", 10.0, {"bootstrap_servers": "127.0.0.1:1"}, Faults())


async def test_records_go_last_so_that_readers_are_held_back_briefly(monkeypatch: Any) -> None:
    asked: list[str] = []
    producer = await _producer(asked, monkeypatch)
    sent_on = [Emit("source", b"k", b"v" * 1000, (), partition) for partition in (1, 2, 3) for _ in range(10)]
    await producer.commit("group", SOURCE, 7, [Emit("changelog", b"k", b"v", (), 0), *sent_on])
    assert asked == ["make"] * 4 + ["begin", "offsets"] + ["send"] * 4 + ["commit"]
    await producer.stop()


async def test_what_does_not_fit_one_batch_goes_in_several_in_order(monkeypatch: Any) -> None:
    producer = await _producer([], monkeypatch)
    packed = producer._packed("changelog", 0, [Emit("changelog", b"k", bytes(MAX_BATCH_BYTES // 4), (), 0)] * 8)
    sizes = [batch.builder.record_count() for batch in packed]
    assert sizes == [3, 3, 2]
    await producer.stop()
