"""The bare loop: aiokafka, orjson and a dict. Nothing of it is durable."""

from __future__ import annotations

import asyncio

import orjson
from aiokafka import AIOKafkaConsumer
from clock import Arguments, Clock, arguments


async def run(args: Arguments, dedup: bool) -> None:
    """Count per (path, hour), with or without a set of the ids seen, until all events were read."""
    # Without a group every partition is its own.
    consumer = AIOKafkaConsumer(args.topic, bootstrap_servers=args.bootstrap, auto_offset_reset="earliest")
    await consumer.start()
    try:
        await _fold(consumer, args.events, dedup)
    finally:
        await consumer.stop()


async def _fold(consumer: AIOKafkaConsumer, events: int, dedup: bool) -> None:
    clock, read = Clock(), 0
    counts: dict[tuple[str, int], int] = {}
    seen: set[str] = set()
    loads = orjson.loads
    while read < events:
        fetched = await consumer.getmany(timeout_ms=1000, max_records=20_000)
        for records in fetched.values():
            clock.start()
            read += len(records)
            for record in records:
                event = loads(record.value)
                if dedup:
                    if event["event_id"] in seen:
                        continue
                    seen.add(event["event_id"])
                key = (event["path"], event["timestamp_ms"] // 3_600_000)
                counts[key] = counts.get(key, 0) + 1
    clock.stop()
    clock.report(read, sum(counts.values()))


def main(dedup: bool) -> None:
    """Run with the command line's arguments."""
    asyncio.run(run(arguments(), dedup))


if __name__ == "__main__":
    main(dedup=False)
