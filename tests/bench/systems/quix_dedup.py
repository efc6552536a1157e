"""Quix Streams: dedup in the state of the id's key, then grouped by path and counted in hourly windows. Exactly once.

State is RocksDB with changelog topics, and the grouping goes through a topic of its own, as its documentation has it.
The clock stops at the last count; the last checkpoint may still be under way.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from clock import Clock, arguments
from quixstreams import Application, State

#: Nothing new for this long means that all was read.
IDLE_S = 8.0

args = arguments()
clock = Clock()
counted = 0


def new(event: dict[str, Any], state: State) -> bool:
    """Whether this id, the record's key, comes for the first time."""
    clock.start()
    if state.exists("seen"):
        return False
    state.set("seen", 1)
    return True


def note(_: Any) -> None:
    """One more count came out."""
    global counted
    counted += 1
    if counted == args.events:
        clock.stop()


def event_time(value: Any, *_: Any) -> int:
    """The event's own time."""
    moment: int = value["timestamp_ms"]
    return moment


app = Application(
    broker_address=args.bootstrap,
    consumer_group="bench-quix",
    auto_offset_reset="earliest",
    state_dir=args.folder / "quix",
    processing_guarantee="exactly-once",
    loglevel="ERROR",
)
topic = app.topic(args.topic, key_deserializer="bytes", timestamp_extractor=event_time)
events = app.dataframe(topic).filter(new, stateful=True)
counts = events.group_by("path").tumbling_window(timedelta(hours=1), grace_ms=timedelta(hours=72)).count().current()
counts.update(note)

if __name__ == "__main__":
    app.run(timeout=IDLE_S)
    if counted < args.events:
        raise SystemExit(f"counted {counted} of {args.events}")
    clock.report(args.events, counted)
