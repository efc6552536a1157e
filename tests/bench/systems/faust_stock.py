"""A stock Faust agent: dedup and count in two tables, as its documentation writes them. At-least-once, its default.

The clock stops at the last event; its last changelog writes and its commit may still be under way.
"""

from __future__ import annotations

import os
import sys

import faust
from clock import Clock, arguments

args = arguments()
clock = Clock()

app = faust.App(
    "bench-faust",
    broker=f"kafka://{args.bootstrap}",
    datadir=str(args.folder / "faust"),
    topic_partitions=4,
    topic_replication_factor=1,
    web_enabled=False,
)
events = app.topic(args.topic, value_serializer="json")
seen = app.Table("seen", default=int)
hourly = app.Table("hourly", default=int)
counted = 0


@app.agent(events)
async def count(stream: faust.Stream) -> None:
    """One event at a time: known ids are passed over, the others counted per path and hour."""
    global counted
    read = 0
    async for event in stream:
        clock.start()
        read += 1
        if event["event_id"] not in seen:
            seen[event["event_id"]] = 1
            hourly[f"{event['path']}|{event['timestamp_ms'] // 3_600_000}"] += 1
            counted += 1
        if read == args.events:
            clock.stop()
            clock.report(read, counted)
            # Stopping a worker in order takes seconds that nobody measures.
            os._exit(0)


if __name__ == "__main__":
    (args.folder / "faust").mkdir(parents=True, exist_ok=True)
    sys.argv[1:] = ["worker", "--loglevel", "error", "--without-web"]
    app.main()
