"""Workers that are broken on purpose, to see that the chaos runs notice: `python -m tests.chaos.sabotage KIND`.

Each kind breaks one rule that exactly-once rests on and is otherwise the product's own worker.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from typing import Any

from aiokafka import TopicPartition
from aiokafka.errors import KafkaError

from compose import worker as composed
from compose.logs import set_up_logs
from compose.settings import Settings, load
from compose.supervisor import die_with_parent
from streams.runtime.changelog import META_KEY
from streams.runtime.faults import Faults
from streams.runtime.partition import PartitionRunner
from streams.runtime.transactions import PartitionProducer
from streams.traffic.fold import TrafficFold
from topics.records import Emit, Flush

ROWS_AFTER_COMMIT = "rows-after-commit"
CURSOR_BEFORE_STATE = "cursor-before-state"
ROLLUPS_BEFORE_COMMIT = "rollups-before-commit"
RETRY_AFTER_FENCE = "retry-after-fence"
SHORT_MEMORY = "short-memory"


def command(kind: str) -> tuple[str, str]:
    """How to start a worker that is broken in this way."""
    return ("tests.chaos.sabotage", kind)


def write_rows_after_commit() -> None:
    """Raw rows follow the transaction that says they are there."""
    write_rows, commit = PartitionRunner._write_rows, PartitionRunner._commit

    async def nothing(self: PartitionRunner, flush: Flush) -> None:
        return

    async def commit_first(self: PartitionRunner, meta: Any, emits: Any, flush: Flush | None = None) -> float:
        seconds = await commit(self, meta, emits, flush)
        if flush is not None:
            await write_rows(self, flush)
        return seconds

    _replace(PartitionRunner, _write_rows=nothing, _commit=commit_first)


def commit_cursor_before_state() -> None:
    """One transaction moves the cursor and the offset, the next one writes what was folded below them."""
    commit = PartitionProducer.commit

    async def commit_twice(
        self: PartitionProducer, group: str, source: TopicPartition, next_offset: int, emits: Iterable[Emit]
    ) -> None:
        every = list(emits)
        await commit(self, group, source, next_offset, [emit for emit in every if emit.key == META_KEY])
        # A planned kill is to come between the two: the second one's points are no passages.
        faults, self._faults = self._faults, Faults()
        await commit(self, group, source, next_offset, [emit for emit in every if emit.key != META_KEY])
        self._faults = faults

    _replace(PartitionProducer, commit=commit_twice)


def write_rollups_before_commit() -> None:
    """ClickHouse sees the state of a flush that is not committed yet."""
    committed, flush_of = TrafficFold.committed, PartitionRunner._flush

    def commit_once(self: TrafficFold, flush: Flush) -> None:
        if flush.token is not None:
            committed(self, flush)
            flush.token = None

    async def show_first(self: PartitionRunner, flush: Flush, reports: list[Emit]) -> None:
        self.fold.committed(flush)
        while (done := self.fold.materialise()) is not None:
            for table, rows in done.rows.items():
                await self._context.sink.insert(table, rows)
            self.fold.materialised(done)
        await flush_of(self, flush, reports)

    _replace(TrafficFold, committed=commit_once)
    _replace(PartitionRunner, _flush=show_first)


def retry_after_fence() -> None:
    """A failed flush is sent again by a new producer under the same transactional id."""
    make, commit = PartitionProducer.__init__, PartitionProducer.commit

    def remember(self: PartitionProducer, *how: Any) -> None:
        make(self, *how)
        vars(self)["how"] = how

    async def commit_stubbornly(
        self: PartitionProducer, group: str, source: TopicPartition, next_offset: int, emits: Iterable[Emit]
    ) -> None:
        every = list(emits)
        try:
            await commit(self, group, source, next_offset, every)
        except KafkaError:
            self._producer = PartitionProducer(*vars(self)["how"])._producer
            await self.start()
            await commit(self, group, source, next_offset, every)

    _replace(PartitionProducer, __init__=remember, commit=commit_stubbornly)


def forget_early() -> None:
    """An id is dropped after an hour, though an event bearing it is accepted for three days."""
    stream_of = composed.stream_of

    def hasty(name: str, settings: Settings, *sinks: Any) -> Any:
        object.__setattr__(settings, "traffic_dedup_h", 1)
        return stream_of(name, settings, *sinks)

    composed.stream_of = hasty


KINDS: dict[str, Callable[[], None]] = {
    ROWS_AFTER_COMMIT: write_rows_after_commit,
    CURSOR_BEFORE_STATE: commit_cursor_before_state,
    ROLLUPS_BEFORE_COMMIT: write_rollups_before_commit,
    RETRY_AFTER_FENCE: retry_after_fence,
    SHORT_MEMORY: forget_early,
}


def _replace(owner: type, **methods: Any) -> None:
    for name, method in methods.items():
        setattr(owner, name, method)


def main() -> None:
    """Break the worker, then run it as `sluiceway worker --child` would."""
    KINDS[sys.argv[1]]()
    settings = load()
    set_up_logs(settings)
    die_with_parent()
    composed.run_stream("traffic", settings)


if __name__ == "__main__":
    main()
