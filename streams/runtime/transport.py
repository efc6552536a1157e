"""Faust's consumer with one change: a stream item is one fetch of one partition, as columns.

Faust's seam is `app.transport`. Faust still runs the group membership, the fetch thread and the agents; here the fetched
bytes become a `Batch` without an object per record, acknowledgements are switched off (positions are explicit: a flush
commits them inside its transaction), and a partition can be held without Faust's own pausing, which Faust undoes by
itself after each rebalance.

Continuity is checked, not assumed. A batch carries the position it was fetched from, so whoever feeds a fold can tell
that nothing was dropped in between, however Faust cleared its queues during a rebalance.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import aiokafka
import faust
from aiokafka.consumer.fetcher import FetchResult
from aiokafka.coordinator.assignors.roundrobin import RoundRobinPartitionAssignor
from faust.transport.drivers import aiokafka as driver
from faust.types import TP, ConsumerMessage

from streams.runtime.fetched import decode_fetch, keep_fetched_bytes
from topics.records import Batch


@dataclass(frozen=True)
class FetchLimits:
    """How much a fetch may bring and how long the broker may wait for more. Sizes in bytes as sent (compressed)."""

    partition_bytes: int = 1 << 20
    wait_ms: int = 100
    session_timeout_ms: int = 10_000
    #: A worker that has not polled for so long leaves the group, so that others take over what it holds.
    poll_timeout_ms: int = 300_000

    @property
    def heartbeat_ms(self) -> int:
        """Several heartbeats fit a session, however short it is set."""
        return self.session_timeout_ms // 5


@dataclass
class Holds:
    """Partitions that are not read for now: restoring, or behind with folding. Shared by loop and fetch thread."""

    held: frozenset[tuple[str, int]] = frozenset()
    _set: set[tuple[str, int]] = field(default_factory=set)

    def hold(self, topic: str, partition: int) -> None:
        """Stop reading a partition; what is prefetched stays in the fetcher."""
        self._set.add((topic, partition))
        self.held = frozenset(self._set)

    def release(self, topic: str, partition: int) -> None:
        """Read a partition again."""
        self._set.discard((topic, partition))
        self.held = frozenset(self._set)


class BatchConsumerThread(driver.AIOKafkaConsumerThread):  # type: ignore[misc]
    """The fetch thread: reads committed records only and hands out whole fetches."""

    def _create_worker_consumer(self, transport: BatchTransport) -> aiokafka.AIOKafkaConsumer:
        limits = transport.limits
        keep_fetched_bytes()
        self._assignor = RoundRobinPartitionAssignor
        return aiokafka.AIOKafkaConsumer(
            group_id=self.app.conf.id,
            client_id=self.app.conf.broker_client_id,
            partition_assignment_strategy=[RoundRobinPartitionAssignor],
            enable_auto_commit=False,
            # Where a group begins; a log that starts after a fold's cursor is refused by the take-over, not skipped.
            auto_offset_reset="earliest",
            isolation_level="read_committed",
            max_partition_fetch_bytes=limits.partition_bytes,
            fetch_max_wait_ms=limits.wait_ms,
            session_timeout_ms=limits.session_timeout_ms,
            heartbeat_interval_ms=limits.heartbeat_ms,
            # A rebalance waits for a flush at revoke at most; polling never blocks on a fold.
            rebalance_timeout_ms=max(limits.session_timeout_ms, 30_000),
            max_poll_interval_ms=limits.poll_timeout_ms,
            metadata_max_age_ms=10_000,
            **transport.client_settings,
        )

    async def _fetch_records(
        self,
        consumer: aiokafka.AIOKafkaConsumer,
        active_partitions: set[TP] | None,
        timeout: float | None = None,
        max_records: int | None = None,
    ) -> Mapping[TP, Batch]:
        fetcher = consumer._fetcher
        if consumer._closed or fetcher._closed:
            raise driver.ConsumerStoppedError
        loop = asyncio.get_running_loop()
        deadline = loop.time() + (timeout or 0.0)
        with fetcher._subscriptions.fetch_context():
            while self.consumer.flow_active:
                if fetcher._subscriptions.reassignment_in_progress:
                    await asyncio.sleep(0.01)
                elif drained := self._drain(fetcher, active_partitions or set()):
                    return drained
                else:
                    await self._next_fetch(fetcher, min(0.02, max(0.0, deadline - loop.time())))
                if loop.time() >= deadline or fetcher._closed:
                    break
        return {}

    async def note_poll(self) -> None:
        """Count as a poll: there was nothing to fetch from."""
        with self._ensure_consumer()._subscription.fetch_context():
            pass

    async def seek_if_assigned(self, tp: TP, offset: int) -> None:
        """Read on from `offset`, unless the partition has moved elsewhere."""
        if tp in self.assignment():
            self.seek(tp, offset)

    async def _next_fetch(self, fetcher: Any, timeout: float) -> None:
        # Short waits: a released hold does not wake the fetcher's waiters.
        waiter = fetcher._create_fetch_waiter()
        done, _ = await asyncio.wait([waiter], timeout=timeout)
        if done:
            waiter.result()  # authorisation errors
        else:
            waiter.cancel()

    def _drain(self, fetcher: Any, active: set[TP]) -> dict[TP, Batch]:
        held = self.transport.holds.held
        drained: dict[TP, Batch] = {}
        for tp in list(fetcher._records):
            if not fetcher._subscriptions.is_assigned(tp):
                del fetcher._records[tp]
            elif tp in active and (tp.topic, tp.partition) not in held:
                result = fetcher._records.pop(tp)
                fetcher._notify(fetcher._wait_consume_future)
                if not isinstance(result, FetchResult):
                    result.check_raise()
                elif result.check_assignment(tp):
                    batch = decode_fetch(tp.topic, tp.partition, result._partition_records)
                    result._update_position()
                    drained[TP(tp.topic, tp.partition)] = batch
        return drained


class _NoOffsets(dict[TP, int | None]):
    """Forgets at once: by the offsets it has read, Faust drops what is read again after a seek, without a word."""

    def __getitem__(self, tp: TP) -> None:
        return None

    def __setitem__(self, tp: TP, offset: int | None) -> None:
        pass


class BatchConsumer(driver.Consumer):  # type: ignore[misc]
    """Faust's consumer, yielding one message a partition fetch; its acknowledgements and commits are no-ops."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._read_offset = _NoOffsets()

    def _new_consumer_thread(self) -> BatchConsumerThread:
        # Its loop is of the kind that the process runs on; left to itself, mode takes the standard library's.
        thread_loop = type(self.loop)()
        thread = BatchConsumerThread(self, loop=self.loop, thread_loop=thread_loop, beacon=self.beacon)
        thread._close_thread_loop_on_stop = True
        return thread

    async def getmany(self, timeout: float) -> AsyncIterator[tuple[TP, ConsumerMessage]]:
        """Yield (partition, message) with the message's value a `Batch`."""
        if not self._get_active_partitions():
            # Faust then polls nothing, and aiokafka makes a member that never polls leave the group, for good: a spare
            # worker would no longer be there when it is needed.
            await self._thread.call_thread(self._thread.note_poll)
        records, _ = await self._wait_next_records(timeout)
        if not records or self.should_stop or not self.flow_active:
            return
        generation = self.app.consumer_generation_id
        for tp, batch in records.items():
            append_s = float(batch.append_ms[-1]) / 1000.0 if len(batch) else 0.0
            yield (
                tp,
                ConsumerMessage(
                    tp.topic,
                    tp.partition,
                    batch.end - 1,
                    append_s,
                    1,
                    [],
                    None,
                    batch,
                    None,
                    0,
                    0,
                    tp,
                    # Without it Faust drops the item as one of an earlier generation, without a word.
                    generation_id=generation,
                ),
            )

    async def perform_seek(self) -> None:
        """Nothing: positions are the take-over's business."""

    async def seek(self, partition: TP, offset: int) -> None:
        """Read on from `offset`, in the fetch thread: its fetcher takes no orders from another one."""
        await self._thread.call_thread(self._thread.seek_if_assigned, partition, offset)

    async def force_commit(self, topics: Any = None, start_new_transaction: bool = True) -> bool:
        """Nothing: a flush commits its offset inside its transaction."""
        return False

    async def _add_gap(self, tp: TP, offset_from: int, offset_to: int) -> None:
        """Nothing: gaps are control records; Faust would note each offset in them."""

    def ack(self, message: ConsumerMessage) -> bool:
        """Nothing: a position is safe when the fold says so."""
        return True


class BatchTransport(driver.Transport):  # type: ignore[misc]
    """Faust's aiokafka transport with the batch consumer."""

    Consumer = BatchConsumer

    def __init__(self, url: Any, app: faust.App, *, limits: FetchLimits, client_settings: dict[str, Any]) -> None:
        super().__init__(url, app)
        self.limits = limits
        self.client_settings = client_settings
        self.holds = Holds()


class BatchSchema(faust.Schema):  # type: ignore[misc]
    """Passes a `Batch` through Faust's decoding untouched."""

    def loads_key(
        self, app: Any, message: Any, *, loads: Callable[..., Any] | None = None, serializer: Any = None
    ) -> None:
        """Batches have no key."""

    def loads_value(
        self, app: Any, message: Any, *, loads: Callable[..., Any] | None = None, serializer: Any = None
    ) -> Any:
        """The batch itself."""
        return message.value
