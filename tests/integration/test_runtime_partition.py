"""One partition's runner against real Kafka: who folds on after a rebalance, and who does not after a fence."""

from __future__ import annotations

import asyncio
import struct
import uuid
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.errors import ProducerFenced
from prometheus_client import CollectorRegistry

from compose.local.stack import LocalStack
from streams.runtime import partition
from streams.runtime.admin import IdentityGuard, TopicAdmin
from streams.runtime.deadletters import DeadLetters
from streams.runtime.faults import Faults
from streams.runtime.fold import Materialisation, Position
from streams.runtime.metrics import StreamMetrics
from streams.runtime.outside import Outside, Seat
from streams.runtime.owners import announcement
from streams.runtime.partition import PartitionContext, PartitionRunner, RuntimeLimits
from streams.runtime.takeover import LogBounds
from tests.waiting import until
from topics import specs
from topics.records import Batch, Emit, Flush, Record

pytestmark = pytest.mark.stack

RECORDS = 100
_COUNT = struct.Struct(">q")


class Tally:
    """The smallest fold: how many records there were. `on_commit` is what a test has happen then."""

    def __init__(self) -> None:
        self.count = self.open_rows = self.unwritten_bytes = 0
        self.on_commit = lambda: None

    def restore(self, records: Sequence[tuple[bytes, bytes | None]]) -> None:
        for _, value in records:
            assert value is not None
            (self.count,) = _COUNT.unpack(value)

    def restored(self, position: Position) -> None:
        pass

    def step(self, batch: Batch) -> None:
        self.count += len(batch)

    def seal(self, position: Position) -> Flush:
        return Flush(position.offset, changelog=[(b"count", _COUNT.pack(self.count))])

    def committed(self, flush: Flush) -> None:
        self.on_commit()

    def undone(self) -> Sequence[Any]:
        return ()

    def idle(self) -> Emit | None:
        return None

    def materialise(self) -> Materialisation | None:
        return None

    def materialised(self, done: Materialisation) -> None:
        pass

    def figures(self) -> Mapping[str, float]:
        return {}


class NoStore:
    """A sink and an object store that nothing is written to."""

    available = True

    async def insert(self, table: str, data: Any) -> None:
        raise AssertionError(f"{table} is written")

    async def put(self, key: str, data: bytes) -> None:
        raise AssertionError(f"{key} is put")


@dataclass
class Worker:
    """What a runner asks of its worker, noted."""

    context: PartitionContext
    seeks: list[int]
    failures: list[BaseException]
    runners: list[PartitionRunner] = field(default_factory=list)

    async def take_over(self) -> PartitionRunner:
        runner = PartitionRunner(self.context, 0)
        self.runners.append(runner)
        async with asyncio.timeout(20):
            await runner.ready.wait()
        return runner


def records(begin: int, end: int) -> Batch:
    """A fetch of the records between two offsets."""
    return Batch.of("source", 0, begin, end, [Record(i, i, None) for i in range(begin, end)])


@asynccontextmanager
async def new_worker(
    stack: LocalStack,
    flush_interval_s: float = 0.05,
    make_fold: Callable[[], Tally] = Tally,
    make_outside: Callable[[Seat, Any], Outside] | None = None,
) -> AsyncIterator[Worker]:
    """A worker on a source of its own, of one partition with `RECORDS` records."""
    group = f"group-{uuid.uuid4().hex[:8]}"
    source, clients = f"{group}-source", {"bootstrap_servers": stack.kafka.bootstrap}
    admin = TopicAdmin({"bootstrap.servers": stack.kafka.bootstrap}, 1)
    changelog = specs.changelog_name(group)
    await admin.ensure(
        [specs.source(source, 1, 1, 1 << 20), specs.changelog(changelog, 1), specs.compacted(specs.OWNERS, 1)]
    )
    async with AIOKafkaProducer(**clients) as producer, AIOKafkaConsumer(**clients) as observer:
        for _ in range(RECORDS):
            await producer.send(source, b"record")
        await producer.flush()
        tp, seeks, failures = TopicPartition(source, 0), [], []

        async def bounds(_: int) -> LogBounds:
            start, end = await observer.beginning_offsets([tp]), await observer.end_offsets([tp])
            return LogBounds(start[tp], end[tp])

        async def seek(_: int, offset: int) -> None:
            seeks.append(offset)

        store, metrics = NoStore(), StreamMetrics("tally", CollectorRegistry())
        worker = Worker(
            PartitionContext(
                stream="tally",
                group=group,
                source=source,
                changelog=changelog,
                limits=RuntimeLimits(flush_interval_s=flush_interval_s, idle_s=0.3),
                client_settings=clients,
                make_fold=lambda _: make_fold(),
                make_outside=make_outside,
                sink=store,
                dead_letters=DeadLetters("tally", "dead", 1 << 20, store),
                guard=IdentityGuard(admin, source),
                bounds=bounds,
                hold=lambda *_: None,
                seek=seek,
                announce=lambda number, term: announcement("tally", number, "http://localhost", term),
                fail=lambda where, error: failures.append(error),
                metrics=metrics.partition,
                faults=Faults(),
            ),
            seeks,
            failures,
        )
        try:
            yield worker
        finally:
            async with asyncio.timeout(20):
                await asyncio.gather(*(runner.close() for runner in worker.runners))


def count(runner: PartitionRunner) -> int:
    assert isinstance(runner.fold, Tally)
    return runner.fold.count


async def test_what_came_while_it_drained_is_read_again(stack: LocalStack) -> None:
    async with new_worker(stack) as worker:
        runner = await worker.take_over()
        runner.feed(records(0, 40))
        await until(lambda: runner.flushed == 40)
        assert await runner.drain(5)
        runner.feed(records(40, RECORDS))
        worker.seeks.clear()
        runner.resume()
        await until(lambda: worker.seeks)
        assert worker.seeks == [40], "the last batch of the log came too early; nothing more would come to tell"
        runner.feed(records(40, RECORDS))
        await until(lambda: runner.flushed == RECORDS)
        assert count(runner) == RECORDS


async def test_batches_past_a_gap_ask_for_one_seek_to_where_the_fold_goes_on(stack: LocalStack) -> None:
    async with new_worker(stack, flush_interval_s=60) as worker:
        runner = await worker.take_over()
        worker.seeks.clear()
        for begin in (30, 50, 70):
            runner.feed(records(begin, begin + 20))
        runner.feed(records(0, 10))
        await until(lambda: worker.seeks)
        assert worker.seeks == [10]
        runner.feed(records(5, RECORDS))
        await until(lambda: runner.expected == RECORDS)
        assert count(runner) == RECORDS


async def test_nothing_is_folded_while_too_many_rows_wait_for_the_sink(stack: LocalStack) -> None:
    async with new_worker(stack) as worker:
        runner = await worker.take_over()
        runner.feed(records(0, 40))
        await until(lambda: runner.flushed == 40)
        assert isinstance(runner.fold, Tally)
        runner.fold.unwritten_bytes = worker.context.limits.unwritten_bytes
        runner.feed(records(40, 70))
        runner.feed(records(70, RECORDS))
        with pytest.raises(TimeoutError):
            await until(lambda: runner.expected > 40, 0.5)
        assert runner.behind, "what came is kept"
        runner.fold.unwritten_bytes = 0
        runner.written()
        await until(lambda: runner.flushed == RECORDS, 2.0)
        assert count(runner) == RECORDS and not worker.failures


async def test_a_runner_that_was_fenced_gives_up_and_harms_nothing(stack: LocalStack) -> None:
    async with new_worker(stack) as worker:
        zombie = await worker.take_over()
        zombie.feed(records(0, 40))
        await until(lambda: zombie.flushed == 40)
        owner = await worker.take_over()
        assert (owner.expected, count(owner)) == (40, 40)
        owner.feed(records(40, 70))
        await until(lambda: owner.flushed == 70)
        zombie.feed(records(40, RECORDS))
        await until(lambda: worker.failures)
        assert isinstance(worker.failures[0], ProducerFenced)
        owner.feed(records(70, RECORDS))
        await until(lambda: owner.flushed == RECORDS)
        late = await worker.take_over()
        assert (late.expected, count(late)) == (RECORDS, RECORDS)
        assert len(worker.failures) == 1


async def test_a_runner_closed_while_it_takes_over_leaves_nothing_in_the_way(stack: LocalStack) -> None:
    async with new_worker(stack) as worker:
        first = await worker.take_over()
        first.feed(records(0, 60))
        await until(lambda: first.flushed == 60)
        for pause_s in (0.0, 0.02, 0.05, 0.1, 0.2, 0.3):
            given_up = PartitionRunner(worker.context, 0)
            await asyncio.sleep(pause_s)
            await given_up.close()
        last = await worker.take_over()
        assert (last.expected, count(last)) == (60, 60)
        assert not worker.failures


async def test_a_take_over_ends_although_its_cancellation_is_swallowed(
    stack: LocalStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    """aiokafka's clients do that while they close, and a take-over closes the one that read the changelog."""
    reading = asyncio.Event()

    async def read(*_: Any) -> AsyncIterator[list[tuple[bytes, bytes | None]]]:
        reading.set()
        with suppress(asyncio.CancelledError):
            await asyncio.sleep(60)
        await asyncio.sleep(60)
        yield []

    async with new_worker(stack) as worker:
        monkeypatch.setattr(partition, "read_changelog", read)
        runner = PartitionRunner(worker.context, 0)
        async with asyncio.timeout(20):
            await reading.wait()
        async with asyncio.timeout(10):
            await runner.close()
        assert not worker.failures


async def test_a_fold_that_fails_at_its_commit_ends_the_process(stack: LocalStack) -> None:
    async with new_worker(stack) as worker:
        runner = await worker.take_over()
        assert isinstance(runner.fold, Tally)
        runner.fold.on_commit = lambda: 1 // 0  # type: ignore[assignment,return-value]
        runner.feed(records(0, 10))
        await until(lambda: worker.failures)
        assert isinstance(worker.failures[0], ZeroDivisionError)


class Errands(Tally):
    """Asks for an effect at every flush, keeps the log from the last ten records on, and wants to be told when it is idle."""

    def __init__(self) -> None:
        super().__init__()
        self.asked = 0
        self.wants_time = False

    def restored(self, position: Position) -> None:
        self.asked = self.count

    def seal(self, position: Position) -> Flush:
        self.asked = self.count
        flush = super().seal(position)
        flush.safe_offset, flush.effects = max(0, position.offset - 10), [self.count]
        return flush

    def undone(self) -> Sequence[Any]:
        return [self.asked] if self.asked else []

    def idle(self) -> Emit | None:
        return Emit(self.source, None, b"idle", (), 0) if self.wants_time else None

    source = ""


class Notes:
    """An outside that notes what it is asked for."""

    def __init__(self, seat: Seat) -> None:
        self.seat = seat
        self.begun: list[Any] = []
        self.closed = False

    def begin(self, effects: Sequence[Any]) -> None:
        self.begun += effects

    def close(self) -> None:
        self.closed = True


def noted() -> tuple[list[Notes], Callable[[Seat, Errands], Notes]]:
    """The outsides that were made, and what makes them."""
    seats: list[Notes] = []

    def make(seat: Seat, fold: Errands) -> Notes:
        seats.append(Notes(seat))
        return seats[-1]

    return seats, make


async def test_effects_begin_after_their_commit_and_again_at_a_take_over(stack: LocalStack) -> None:
    seats, make = noted()
    async with new_worker(stack, make_fold=Errands, make_outside=make) as worker:
        first = await worker.take_over()
        assert (seats[0].begun, seats[0].seat.term) == ([], 1)
        first.feed(records(0, 40))
        await until(lambda: first.flushed == 40)
        assert seats[0].begun == [40]
        second = await worker.take_over()
        assert seats[1].begun == [40], "the state says that it was asked for, and nothing says that it was done"
        assert seats[1].seat.term == 2
        assert (second.expected, worker.seeks[-1]) == (30, 30), "the log is read again from the safe offset on"
        await second.close()
        assert seats[1].closed


async def test_an_effect_is_not_begun_when_its_flush_does_not_commit(stack: LocalStack) -> None:
    seats, make = noted()
    async with new_worker(stack, make_fold=Errands, make_outside=make) as worker:
        zombie = await worker.take_over()
        await worker.take_over()
        zombie.feed(records(0, 40))
        await until(lambda: worker.failures)
        assert seats[0].begun == []


async def test_what_is_reported_and_idle_records_come_back_in_the_log(stack: LocalStack) -> None:
    seats, make = noted()
    async with new_worker(stack, make_fold=Errands, make_outside=make) as worker:
        runner = await worker.take_over()
        source = worker.context.source
        seats[0].seat.report([Emit(source, b"key", b"outcome", (), 0)])
        assert isinstance(runner.fold, Errands)
        runner.fold.source, runner.fold.wants_time = source, True
        consumer = AIOKafkaConsumer(isolation_level="read_committed", **worker.context.client_settings)
        async with consumer:
            tp = TopicPartition(source, 0)
            consumer.assign([tp])
            consumer.seek(tp, RECORDS)
            async with asyncio.timeout(20):
                values = [(await consumer.getone()).value for _ in range(3)]
        assert values == [b"outcome", b"idle", b"idle"]


async def test_a_fenced_owner_reports_nothing(stack: LocalStack) -> None:
    seats, make = noted()
    async with new_worker(stack, make_fold=Errands, make_outside=make) as worker:
        await worker.take_over()
        owner = await worker.take_over()
        seats[0].seat.report([Emit(worker.context.source, b"key", b"late", (), 0)])
        await until(lambda: worker.failures)
        owner.feed(records(0, RECORDS))
        await until(lambda: owner.flushed == RECORDS)
        consumer = AIOKafkaConsumer(isolation_level="read_committed", **worker.context.client_settings)
        async with consumer:
            tp = TopicPartition(worker.context.source, 0)
            consumer.assign([tp])
            consumer.seek(tp, RECORDS)
            assert not (await consumer.getmany(tp, timeout_ms=1_000)).get(tp)
