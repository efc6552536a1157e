"""The partitions of a topic that may not be there yet."""

from __future__ import annotations

import asyncio

from aiokafka import AIOKafkaConsumer, TopicPartition

_RETRY_S = 1.0


async def awaited_partitions(consumer: AIOKafkaConsumer, topic: str) -> list[TopicPartition]:
    """The topic's partitions in order, as soon as it is there. Raises KafkaError.

    A consumer that is assigned what is not there asks for it thousands of times a second.
    """
    while True:
        await consumer._client.add_topic(topic)
        found = consumer.partitions_for_topic(topic)
        if found:
            return [TopicPartition(topic, partition) for partition in sorted(found)]
        await asyncio.sleep(_RETRY_S)
        await consumer._client.force_metadata_update()
