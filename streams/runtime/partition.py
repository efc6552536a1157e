"""One owned partition: take-over, fold, flush, drain. The order of events here is what exactly-once rests on.

Take-over: (1) start the transactional producer, which fences every earlier owner; (2) only then read the changelog up to
its end, which no one else can move any more; (3) decide where the fold stands (`takeover`); (4) commit a first
transaction with the raised term; (5) read the source from the cursor.

Flush: (1) `seal` encodes what the flush writes before any later record is folded; (2) the topic is checked to be still
the same one, so that every record in the flush came from it: rows of a topic made anew, read on from a cursor of the old
one, would stay in ClickHouse; (3) raw rows go there, keyed by source coordinates, so that writing them again changes
nothing; (4) changelog records, output records, what was reported of effects and the source offset are committed in one
transaction; (5) only then does the fold treat the flush as committed, its effects begin, and rollups are written from that
state.

A flush is never retried from memory. If its transaction fails, or its outcome is unknown, `fail` ends the process, and
the successor restores what was really committed. Only step 3 is retried, by the sink, before anything was promised.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import structlog
from aiokafka import TopicPartition

from streams.runtime.admin import IdentityGuard
from streams.runtime.changelog import META_KEY, Meta, decode_meta, read_changelog
from streams.runtime.deadletters import DeadLetters
from streams.runtime.faults import Faults
from streams.runtime.fold import Fold, Position, RowSink
from streams.runtime.metrics import PartitionMetrics
from streams.runtime.outside import Outside, Seat
from streams.runtime.takeover import LogBounds, LogLost, begin, check_count
from streams.runtime.transactions import PartitionProducer
from topics.records import Batch, Emit, Flush

log = structlog.get_logger(__name__)

#: Stages in which a partition waits for a store.
WRITING_ROWS, KEEPING_DEAD_LETTERS = "writing rows", "keeping dead letters"


@dataclass(frozen=True)
class RuntimeLimits:
    """When to flush and how much to hold. Rows are records folded since the last seal."""

    flush_interval_s: float = 0.5
    flush_rows: int = 50_000
    idle_s: float = 5.0
    inbox_batches: int = 2
    unwritten_bytes: int = 64 << 20
    transaction_timeout_s: float = 10.0
    accept_loss: bool = False


@dataclass(frozen=True)
class PartitionContext:
    """What all partitions of a stream share; made once by the stream's worker."""

    stream: str
    group: str
    source: str
    changelog: str
    limits: RuntimeLimits
    client_settings: dict[str, Any]
    make_fold: Callable[[int], Fold]
    make_outside: Callable[[Seat, Any], Outside] | None
    sink: RowSink
    dead_letters: DeadLetters
    guard: IdentityGuard
    bounds: Callable[[int], Any]  # async (partition) -> LogBounds
    hold: Callable[[int, bool], None]
    seek: Callable[[int, int], Any]  # async (partition, offset)
    announce: Callable[[int, int], Emit]  # (partition, term) -> the owner's announcement
    fail: Callable[[str, BaseException], None]
    metrics: Callable[[int], PartitionMetrics]
    faults: Faults


class PartitionRunner:
    """Owns one partition from assignment to revocation. All methods run on the worker's event loop."""

    def __init__(self, context: PartitionContext, partition: int) -> None:
        self._context = context
        self.partition = partition
        self.fold: Fold = context.make_fold(partition)
        self.meta: Meta | None = None
        self.expected = 0  # the next source offset to fold
        self.flushed = 0  # everything below is folded into what is committed
        self.ready = asyncio.Event()
        self.log_end = 0
        self.stage = "restoring"  # what the partition is busy with, for status and the watchdog
        self._inbox: deque[Batch] = deque()
        self._wake = asyncio.Event()
        self._sealed_at = 0.0
        self._folded_at = time.monotonic()
        self._outside: Outside | None = None
        self._reports: list[Emit] = []
        self._flushing: asyncio.Task[None] | None = None
        self._seeking: asyncio.Task[None] | None = None
        self._draining = False
        self._closing = False
        self._held = True
        self._log = log.bind(stream=context.stream, partition=partition)
        self.metrics = context.metrics(partition)
        self._producer = PartitionProducer(
            f"{context.group}-{partition}",
            context.limits.transaction_timeout_s,
            context.client_settings,
            context.faults,
        )
        self._task = asyncio.create_task(self._guarded(), name=f"{context.stream}-{partition}")

    @property
    def epoch(self) -> int:
        """The source topic's epoch in this fold."""
        return self.meta.epoch if self.meta else 0

    @property
    def doing(self) -> str:
        """Stage, inbox and position in a few words, for a message."""
        held = ", held" if self._held else ""
        waiting = f"{len(self._inbox)} batches waiting, {self.fold.open_rows} rows open"
        return f"{self.stage}, {waiting}, folded to {self.expected}{held}"

    @property
    def storing(self) -> bool:
        """Whether it waits for a store's answer, which has a time-out of its own."""
        return self.stage in (WRITING_ROWS, KEEPING_DEAD_LETTERS)

    @property
    def dirty(self) -> bool:
        """Whether something was folded or reported that no flush has committed."""
        return self.expected > self.flushed or bool(self._reports)

    @property
    def behind(self) -> bool:
        """Whether batches wait to be folded."""
        return bool(self._inbox)

    def feed(self, batch: Batch) -> None:
        """Take one fetched batch; never blocks. Batches that do not join on are dropped and read again."""
        self._context.faults.reach("fetch")
        if self._draining or not self.ready.is_set():
            return
        tail = self._tail()
        if batch.begin > tail:
            self._log.info("reading again", position=tail, seen=batch.begin)
            self._read_again()
        elif batch.end > tail:
            self._inbox.append(batch.since(tail) if batch.begin < tail else batch)
            self._regulate()
            self._wake.set()

    def written(self) -> None:
        """Rows of it have been written: it may fold on."""
        self._wake.set()

    def report(self, records: Sequence[Emit]) -> None:
        """Have records of this partition written by its next flush; see `outside`."""
        self._reports += records
        self._wake.set()

    async def drain(self, deadline_s: float) -> bool:
        """Stop folding and flush what was folded; False when that was not done in time: it is then not committed."""
        self._draining = True
        self._inbox.clear()
        try:
            async with asyncio.timeout(deadline_s):
                while self.ready.is_set() and (self.dirty or self._flushing):
                    if self._flushing is None:
                        self._start_flush()
                    await asyncio.shield(self._flushing)  # type: ignore[arg-type]
        except TimeoutError:
            self._log.warning("flush abandoned at its deadline", uncommitted=self.expected - self.flushed)
            return False
        return True

    def resume(self) -> None:
        """Fold on after a drain: the partition was kept across a rebalance."""
        self._draining = False
        self._wake.set()
        if self.ready.is_set():
            # What came while it drained was dropped, and the reader may stand past it: were it the log's last, nothing
            # would come to tell.
            self._read_again()

    async def close(self) -> None:
        """Give the partition up. Does not flush."""
        self._draining = self._closing = True
        if self._outside is not None:
            self._outside.close()
        tasks = [task for task in (self._task, self._flushing, self._seeking) if task is not None]
        while pending := [task for task in tasks if not task.done()]:
            # More than once: a client of aiokafka that is being closed swallows a cancellation.
            for task in pending:
                task.cancel()
            await asyncio.wait(pending, timeout=0.1)
        try:
            async with asyncio.timeout(3):
                await self._producer.stop()
        except Exception as error:
            self._log.info("producer closed with an error", error=repr(error))

    # -- the partition's task ------------------------------------------------------------------------------------

    async def _guarded(self) -> None:
        try:
            await self._take_over()
            await self._run()
        except asyncio.CancelledError:
            raise
        except Exception as error:
            self._context.fail(f"partition {self.partition}", error)

    async def _take_over(self) -> None:
        context, started = self._context, time.monotonic()
        await self._producer.start()
        stored, size = await self._restore()
        identity = await context.guard.current()
        bounds: LogBounds = await context.bounds(self.partition)
        where = f"{context.source}[{self.partition}]"
        meta = begin(stored, identity, bounds, where, context.limits.accept_loss)
        self.fold.restored(Position(meta.epoch, meta.cursor))
        await self._commit(meta, [context.announce(self.partition, meta.term)])
        self.expected = self.flushed = meta.cursor
        await context.seek(self.partition, meta.cursor)
        self._open_outside(meta)
        self.ready.set()
        self._regulate()
        seconds = time.monotonic() - started
        self.metrics.restored(seconds, size)
        self._log.info(
            "took over", cursor=meta.cursor, epoch=meta.epoch, term=meta.term, bytes=size, s=round(seconds, 2)
        )

    def _open_outside(self, meta: Meta) -> None:
        make = self._context.make_outside
        if make is not None:
            fail = lambda error: self._context.fail(f"outside of partition {self.partition}", error)  # noqa: E731
            seat = Seat(self.partition, meta.term, self.report, fail, self._context.faults.reach)
            self._outside = make(seat, self.fold)
            self._outside.begin(self.fold.undone())

    async def _restore(self) -> tuple[Meta | None, int]:
        meta, size = None, 0
        async for records in read_changelog(self._context.changelog, self.partition, self._context.client_settings):
            self.fold.restore([record for record in records if record[0] != META_KEY])
            for key, value in records:
                size += len(key) + len(value or b"")
                if key == META_KEY and value is not None:
                    meta = decode_meta(value)
            await asyncio.sleep(0)
        return meta, size

    async def _run(self) -> None:
        while True:
            await self._next_event()
            while self._inbox and not self._draining and self._room():
                batch = self._inbox.popleft()
                self._fold(batch)
                if self._due():
                    self._start_flush()
                self._regulate()
                await asyncio.sleep(0)
            self._tell_time()
            if self._due():
                self._start_flush()
            self._regulate()

    def _tell_time(self) -> None:
        """Write the fold's idle record when nothing was read for a while, so that a quiet partition's clock goes on."""
        if not self._quiet_s() and not self._reports and self._flushing is None and not self._draining:
            record = self.fold.idle()
            self._folded_at = time.monotonic()
            if record is not None:
                self.report([record])

    def _quiet_s(self) -> float:
        """Seconds until the partition counts as quiet."""
        return max(0.0, self._folded_at + self._context.limits.idle_s - time.monotonic())

    async def _next_event(self) -> None:
        """Wait for a batch, the end of a flush, or the time of the next one."""
        timeout = max(0.05, self._quiet_s())
        if self.dirty and self._flushing is None and not self._draining:
            timeout = max(0.0, self._sealed_at + self._context.limits.flush_interval_s - time.monotonic())
        try:
            async with asyncio.timeout(timeout):
                await self._wake.wait()
        except TimeoutError:
            pass
        self._wake.clear()

    def _fold(self, batch: Batch) -> None:
        started = time.perf_counter()
        self.fold.step(batch)
        self.expected = batch.end
        self._folded_at = time.monotonic()
        self.metrics.folded(len(batch), time.perf_counter() - started, self._folded_at - batch.fetched_s)
        self._context.faults.reach("fold")

    def _room(self) -> bool:
        """Whether the fold may go on: at most one more flush is collected while one is under way, and no more rows wait for
        the sink than memory has room for. What is not folded stays in the log."""
        if self.fold.unwritten_bytes >= self._context.limits.unwritten_bytes:
            return False
        return self._flushing is None or self.fold.open_rows < self._context.limits.flush_rows

    def _due(self) -> bool:
        if self._flushing is not None or not self.dirty or self._draining:
            return False
        limits = self._context.limits
        waited = time.monotonic() - self._sealed_at
        return waited >= limits.flush_interval_s or self.fold.open_rows >= limits.flush_rows

    def _regulate(self) -> None:
        """Hold the partition while its inbox is full: back-pressure without blocking the poll loop."""
        held = not self.ready.is_set() or len(self._inbox) >= self._context.limits.inbox_batches
        if held != self._held:
            self._held = held
            self._context.hold(self.partition, held)

    def _tail(self) -> int:
        """The offset that the next batch is to begin at."""
        return self._inbox[-1].end if self._inbox else self.expected

    def _read_again(self) -> None:
        # A rebalance may clear Faust's queues, and with them a batch; its records are still in the log.
        if self._seeking is None or self._seeking.done():
            self._seeking = asyncio.create_task(self._seek_back())

    async def _seek_back(self) -> None:
        try:
            bounds: LogBounds = await self._context.bounds(self.partition)
            position = self._tail()
            if bounds.start > position:
                raise LogLost(f"offsets {position} to {bounds.start - 1} were removed before they were read")
            await self._context.seek(self.partition, position)
        except Exception as error:
            self._context.fail(f"partition {self.partition}", error)

    # -- flush ---------------------------------------------------------------------------------------------------

    def _start_flush(self) -> None:
        assert self._flushing is None and self.meta is not None
        self._sealed_at = time.monotonic()
        started = time.perf_counter()
        flush = self.fold.seal(Position(self.meta.epoch, self.expected))
        self.metrics.sealed(time.perf_counter() - started)
        reports, self._reports = self._reports, []
        self._flushing = asyncio.create_task(self._flush(flush, reports))

    async def _flush(self, flush: Flush, reports: list[Emit]) -> None:
        started = time.monotonic()
        try:
            await self._check_topic()
            await self._write_rows(flush)
            assert self.meta is not None
            meta = Meta(self.meta.topic_id, self.meta.partitions, self.meta.epoch, self.meta.term, flush.cursor)
            self.stage = KEEPING_DEAD_LETTERS
            emits = [*flush.emits, *reports, *await self._context.dead_letters.emits(flush.dead)]
            seconds = await self._commit(meta, emits, flush)
            self.fold.committed(flush)
            if self._outside is not None:
                self._outside.begin(flush.effects)
        except asyncio.CancelledError as error:
            if not self._closing:
                self._context.fail(f"partition {self.partition}", error)
            raise
        except Exception as error:
            self._context.fail(f"partition {self.partition}", error)
            return
        self.flushed = flush.next_offset
        self._flushing = None
        self.metrics.flushed(time.monotonic() - started, seconds, flush)
        self._wake.set()

    async def _write_rows(self, flush: Flush) -> None:
        self.stage = WRITING_ROWS
        self._context.faults.reach("raw.before")
        rows = {name: tables for name, tables in flush.rows.items() if tables}
        dead = self._context.dead_letters.rows(flush.dead)
        inserts = [self._context.sink.insert(name, table) for name, tables in rows.items() for table in tables]
        if dead is not None:
            inserts.append(self._context.sink.insert("deadletters_rows", dead))
        await asyncio.gather(*inserts)
        self._context.faults.reach("raw.after")

    async def _check_topic(self) -> None:
        self.stage = "checking the topic"
        identity = await self._context.guard.current()
        assert self.meta is not None
        if identity.topic_id != self.meta.topic_id:
            raise LogLost(f"{self._context.source} was made anew while it was read; starting again on the new topic")
        check_count(self.meta, identity, self._context.source)

    async def _commit(self, meta: Meta, emits: list[Emit], flush: Flush | None = None) -> float:
        """One transaction; returns its seconds."""
        self.stage, started = "committing", time.monotonic()
        changelog = [] if flush is None else flush.changelog
        records = [Emit(self._context.changelog, key, value, (), self.partition) for key, value in changelog]
        records.append(Emit(self._context.changelog, META_KEY, meta.encode(), (), self.partition))
        source = TopicPartition(self._context.source, self.partition)
        async with asyncio.timeout(self._context.limits.transaction_timeout_s * 2):
            await self._producer.commit(self._context.group, source, meta.cursor, [*records, *emits])
        self.meta, self.stage = meta, "folding"
        return time.monotonic() - started
