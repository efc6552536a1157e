"""Bytewax: dedup and count as keyed stateful steps, with its recovery store on disk and its default snapshot interval."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import bytewax.operators as op
import orjson
from bytewax._bytewax import cli_main, init_db_dir
from bytewax.connectors.kafka import KafkaSource, KafkaSourceMessage
from bytewax.dataflow import Dataflow
from bytewax.outputs import DynamicSink, StatelessSinkPartition
from bytewax.recovery import RecoveryConfig
from clock import Clock, arguments

SNAPSHOT_INTERVAL = timedelta(seconds=10)

args = arguments()
clock = Clock()
counted = 0


def decode(message: KafkaSourceMessage[Any, Any]) -> tuple[str, dict[str, Any]]:
    """The event under its id."""
    clock.start()
    event = orjson.loads(message.value)
    return event["event_id"], event


def first_time(seen: bool | None, event: dict[str, Any]) -> tuple[bool, dict[str, Any] | None]:
    """State of an id: whether it was met."""
    return True, None if seen else event


def place(item: tuple[str, dict[str, Any] | None]) -> tuple[str, int] | None:
    """What a new event is counted under; None for a repeated one."""
    event = item[1]
    return None if event is None else (f"{event['path']}|{event['timestamp_ms'] // 3_600_000}", 1)


def add(total: int | None, one: int) -> tuple[int, int]:
    """State of a path and hour: its count."""
    total = (total or 0) + one
    return total, total


class Discard(StatelessSinkPartition[Any]):
    """Where counts go."""

    def write_batch(self, items: list[Any]) -> None:
        """Note how many came."""
        global counted
        counted += len(items)


class Discarding(DynamicSink[Any]):
    """Makes the sink."""

    def build(self, step_id: str, worker_index: int, worker_count: int) -> Discard:
        """One for the one worker."""
        return Discard()


flow = Dataflow("bench")
messages = op.input("events", flow, KafkaSource([args.bootstrap], [args.topic], tail=False))
by_id = op.map("decode", messages, decode)
new = op.filter_map("place", op.stateful_map("dedup", by_id, first_time), place)
op.output("counts", op.stateful_map("count", new, add), Discarding())

if __name__ == "__main__":
    folder = args.folder / "bytewax"
    folder.mkdir(parents=True)
    init_db_dir(folder, 1)
    cli_main(flow, epoch_interval=SNAPSHOT_INTERVAL, recovery_config=RecoveryConfig(folder))
    clock.stop()
    clock.report(args.events, counted)
