"""How a gateway hands records to Kafka: all of them confirmed (acks=all), or an error that makes resending the answer.

A producer that failed to deliver is abandoned, never retried from memory: a new one takes its place, and whoever waits
is told. Traffic events carry their id, so sending the same again changes nothing.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple, Protocol

import structlog
from aiokafka import AIOKafkaProducer
from aiokafka.errors import KafkaConnectionError, KafkaError, UnknownTopicOrPartitionError

from topics import native
from topics.partitioning import partition_of

#: Key and value of one record.
Record = tuple[bytes, bytes]
#: The same with headers of its own.
HeadedRecord = tuple[bytes, bytes, Sequence[tuple[str, bytes | None]]]
_Records = Sequence[Record] | Sequence[HeadedRecord]

#: Keys that come again and again, as a session's chunks do.
_partition_of = lru_cache(maxsize=16_384)(partition_of)

log = structlog.get_logger(__name__)


class PublishUnavailable(Exception):
    """Kafka did not confirm every record in time; some may have been stored. Sending all of them again is safe."""


class Place(NamedTuple):
    """Where a record lies in its topic."""

    partition: int
    offset: int


#: What came of records: where the first of them lies, or that Kafka did not confirm.
Told = Callable[["Place | PublishUnavailable"], None]


class EventPublisher(Protocol):
    """What a gateway needs of Kafka to take events in."""

    async def publish(self, records: Sequence[Record]) -> None:
        """Return once Kafka holds every record. Raises PublishUnavailable."""

    async def reachable(self) -> bool:
        """Whether Kafka answers now."""


@dataclass(frozen=True)
class PublishLimits:
    """Bounds in time and memory. `batch_bytes` is of one batch before compression; the broker limits it after.

    With `linger_s` batches leave at multiples of it only, those of all partitions together in one request: many records that
    come one by one then cost one request, and wait half of it on average.
    """

    linger_s: float = 0.0
    compression: str | None = "lz4"
    delivery_timeout_s: float = 10.0
    request_timeout_s: float = 5.0
    pending_bytes_max: int = 64 << 20
    batch_bytes: int = 256 << 10
    reconnect_max_s: float = 2.0
    reachable_timeout_s: float = 2.0


class KafkaPublisher:
    """Publishes to one topic by an idempotent producer, connecting in the background for as long as it takes.

    `connection` are aiokafka's own arguments (`bootstrap_servers`, security); `sender` is the `producer` header.
    """

    def __init__(
        self, connection: Mapping[str, Any], topic: str, sender: str, limits: PublishLimits | None = None
    ) -> None:
        self._connection = connection
        self._topic = topic
        self._headers = [("producer", sender.encode())]
        self._limits = limits or PublishLimits()
        self._session: _Session | None = None
        self._trouble = "no answer yet"
        self._connected = asyncio.Event()
        self._pending_bytes = 0
        self._for_room: dict[Callable[[], None], None] = {}
        self._keeper: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Begin to connect; returns at once, also while Kafka is down."""
        self._keeper = asyncio.create_task(self._keep_connected(), name=f"publisher {self._topic}")

    async def close(self) -> None:
        """Disconnect. Publishes still waiting are failed: close after the last of them."""
        if self._keeper is not None:
            self._keeper.cancel()
            with suppress(asyncio.CancelledError):
                await self._keeper

    async def wait_connected(self, timeout_s: float) -> None:
        """Wait for the first connection. Raises PublishUnavailable with what stands in the way."""
        try:
            async with asyncio.timeout(timeout_s):
                await self._connected.wait()
        except TimeoutError:
            raise PublishUnavailable(f"Kafka cannot be reached: {self._trouble}") from None

    async def reachable(self) -> bool:
        """Whether the broker answers a metadata request now."""
        session = self._session
        try:
            async with asyncio.timeout(self._limits.reachable_timeout_s):
                return session is not None and bool(await session.producer.client.force_metadata_update())
        except (TimeoutError, KafkaError, OSError):
            return False

    @property
    def connected(self) -> bool:
        """Whether there is a connection, as far as is known; a broker that is gone is noticed by the next record."""
        return self._session is not None

    async def partitions(self) -> int:
        """How many partitions the topic has. Raises PublishUnavailable while that is not known."""
        session = self._session
        if session is None:
            raise PublishUnavailable(f"Kafka cannot be reached: {self._trouble}")
        return len(await session.producer.partitions_for(self._topic))

    async def publish(self, records: Sequence[Record]) -> None:
        """Send records to the partitions of their keys and wait for all. Raises PublishUnavailable."""
        await self._publish(records)

    async def append(self, records: Sequence[HeadedRecord]) -> Place:
        """`publish` of records of one key, in their order; where the first of them lies. Raises PublishUnavailable."""
        (first,) = await self._publish(records, one_key=True)
        return first

    def post(self, record: HeadedRecord, told: Told) -> None:
        """`append` of one record for those who send many: in the order of the calls, without a task that waits for each.

        `told` is called once, with where it lies or why that is not known, possibly before this returns. Nothing is refused
        while `crowded`: whoever posts is to stop reading then, and has read at most one record more.
        """
        session = self._session
        if session is None:
            told(PublishUnavailable(f"Kafka cannot be reached: {self._trouble}"))
            return
        size = len(record[0]) + len(record[1])

        def settled(found: Place | PublishUnavailable) -> None:
            self._settle(size)
            told(found)

        self._pending_bytes += size
        session.post(record, settled)

    @property
    def crowded(self) -> bool:
        """Whether so much waits for Kafka that no more is to be read from anybody."""
        return self._pending_bytes >= self._limits.pending_bytes_max

    def when_room(self, call: Callable[[], None]) -> None:
        """Call once when half of what may wait for Kafka is free again, however often it is asked for."""
        self._for_room[call] = None

    def _settle(self, size: int) -> None:
        self._pending_bytes -= size
        if self._for_room and self._pending_bytes <= self._limits.pending_bytes_max // 2:
            waiting, self._for_room = self._for_room, {}
            for call in waiting:
                call()

    def _admitted(self, size: int) -> _Session:
        """The session, if so much may wait for Kafka beside what does."""
        if self._session is None:
            raise PublishUnavailable(f"Kafka cannot be reached: {self._trouble}")
        if self._pending_bytes and self._pending_bytes + size > self._limits.pending_bytes_max:
            raise PublishUnavailable(f"{self._pending_bytes} bytes wait for Kafka already; it is slower than its input")
        return self._session

    async def _publish(self, records: _Records, one_key: bool = False) -> list[Place]:
        size = sum(len(record[0]) + len(record[1]) for record in records)
        session = self._admitted(size)
        self._pending_bytes += size
        try:
            async with asyncio.timeout(self._limits.delivery_timeout_s):
                return [await session.append(records)] if one_key else await session.send(records)
        except TimeoutError:
            session.break_off(f"no answer within {self._limits.delivery_timeout_s:g} s")
            raise PublishUnavailable(session.told()) from None
        finally:
            self._settle(size)

    async def _keep_connected(self) -> None:
        attempt = 0
        while True:
            try:
                async with _Session(self._connection, self._topic, self._headers, self._limits) as session:
                    self._session, attempt = session, 0
                    self._connected.set()
                    log.info("kafka_connected", topic=self._topic)
                    await session.broken.wait()
                    self._tell(session.trouble)
            except Exception as error:
                self._tell(_trouble_of(error, self._topic))
            finally:
                self._session = None
            attempt += 1
            pause_s = min(self._limits.reconnect_max_s, 0.1 * 2 ** min(attempt, 10))
            await asyncio.sleep(pause_s * random.uniform(0.5, 1.0))

    def _tell(self, trouble: str) -> None:
        if trouble != self._trouble:
            log.warning("kafka_unreachable", topic=self._topic, error=trouble)
        self._trouble = trouble


class _Session:
    """One producer and its lanes, from a connection to the first failure."""

    def __init__(
        self, connection: Mapping[str, Any], topic: str, headers: list[tuple[str, bytes]], limits: PublishLimits
    ) -> None:
        self.producer = AIOKafkaProducer(
            **connection,
            enable_idempotence=True,
            acks="all",
            compression_type=limits.compression,
            max_batch_size=limits.batch_bytes,
            request_timeout_ms=int(limits.request_timeout_s * 1000),
            metadata_max_age_ms=60_000,
        )
        self.topic = topic
        self.headers = headers
        self.broken = asyncio.Event()
        self.trouble = ""
        self.timeout_s = limits.delivery_timeout_s
        self.linger_s = limits.linger_s
        self._partitions = 0
        self._lanes: dict[int, _Lane] = {}

    async def __aenter__(self) -> _Session:
        try:
            async with asyncio.timeout(self.timeout_s):
                await self.producer.start()
                await self._count()
        except BaseException:
            await _abandon(self.producer)
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        self.break_off("the connection was closed")
        for lane in self._lanes.values():
            lane.close()
        await _abandon(self.producer)

    def break_off(self, trouble: str) -> None:
        """Take nothing more through this producer; the first trouble is the one that is told."""
        self.trouble = self.trouble or trouble
        self.broken.set()

    def told(self) -> str:
        """The trouble, in a sentence for a client."""
        return f"Kafka did not confirm: {self.trouble}"

    async def send(self, records: _Records) -> list[Place]:
        """Send records and wait for all; the first place in each partition. Raises PublishUnavailable."""
        partitions = await self._count()
        waiting = [self._lane(p).wait(rows) for p, rows in _by_partition(records, partitions)]
        return list(await asyncio.gather(*waiting))

    async def append(self, records: _Records) -> Place:
        """`send` of records of one key."""
        await self._count()
        return await self._lane(_partition_of(records[0][0], self._partitions)).wait(records)

    def post(self, record: HeadedRecord, told: Told) -> None:
        """See `KafkaPublisher.post`."""
        try:
            lane = self._lane(_partition_of(record[0], self._partitions))
        except PublishUnavailable as error:
            told(error)
        else:
            lane.add((record,), told)

    async def _count(self) -> int:
        self._partitions = len(await self.producer.partitions_for(self.topic))
        return self._partitions

    def _lane(self, partition: int) -> _Lane:
        if self.broken.is_set():
            raise PublishUnavailable(self.told())
        if partition not in self._lanes:
            self._lanes[partition] = _Lane(self, partition)
        return self._lanes[partition]


class _Lane:
    """One partition: what arrives while a batch is under way goes out together in the next one."""

    def __init__(self, session: _Session, partition: int) -> None:
        self._session = session
        self._partition = partition
        self._waiting: list[tuple[_Records, Told]] = []
        self._taken: deque[tuple[_Records, Told]] = deque()
        self._wake = asyncio.Event()
        self._task = asyncio.create_task(self._run())
        self._task.add_done_callback(self._ended)

    def add(self, records: _Records, told: Told) -> None:
        """Queue records, and tell what became of them."""
        self._waiting.append((records, told))
        self._wake.set()

    async def wait(self, records: _Records) -> Place:
        """Queue records and wait until Kafka has them; the first one's place. Raises PublishUnavailable."""
        done: asyncio.Future[Place] = asyncio.get_running_loop().create_future()

        def told(found: Place | PublishUnavailable) -> None:
            if done.done():
                return
            if isinstance(found, Place):
                done.set_result(found)
            else:
                done.set_exception(found)

        self.add(records, told)
        return await done

    def close(self) -> None:
        """Stop, failing what waits."""
        self._task.cancel()

    async def _run(self) -> None:
        try:
            while True:
                await self._wake.wait()
                if self._session.linger_s:
                    await self._until_next_departure()
                self._wake.clear()
                self._taken, self._waiting = deque(self._waiting), []
                async with asyncio.timeout(self._session.timeout_s):
                    offsets = await self._send([record for records, _ in self._taken for record in records])
                at = 0
                while self._taken:
                    records, tell = self._taken.popleft()
                    tell(Place(self._partition, offsets[at]))
                    at += len(records)
        except TimeoutError:
            self._session.break_off(f"no answer within {self._session.timeout_s:g} s")
        except Exception as error:
            self._session.break_off(_trouble_of(error, self._session.topic))

    def _ended(self, _: object) -> None:
        """Nothing follows: whoever ends a lane breaks its session off first, which takes nothing from then on."""
        for _, tell in [*self._taken, *self._waiting]:
            tell(PublishUnavailable(self._session.told()))

    async def _until_next_departure(self) -> None:
        """The next multiple of the linger, which is the same moment for all lanes."""
        linger_s = self._session.linger_s
        now = time.monotonic()
        await asyncio.sleep(linger_s - now % linger_s)

    async def _send(self, records: list[Record | HeadedRecord]) -> list[int]:
        """Send all, and wait; the offset of each."""
        producer, own = self._session.producer, self._session.headers
        sent: list[asyncio.Future[Any]] = []
        sizes: list[int] = []
        batch = producer.create_batch()
        for key, value, *more in records:
            headers = [*own, *more[0]] if more else own
            if batch.append(key=key, value=value, timestamp=None, headers=headers) is None:
                sizes.append(batch.record_count())
                sent.append(await producer.send_batch(batch, self._session.topic, partition=self._partition))
                batch = producer.create_batch()
                batch.append(key=key, value=value, timestamp=None, headers=headers)
        sizes.append(batch.record_count())
        sent.append(await producer.send_batch(batch, self._session.topic, partition=self._partition))
        placed = await asyncio.gather(*sent)
        return [data.offset + i for data, size in zip(placed, sizes, strict=True) for i in range(size)]


def _by_partition(records: _Records, partitions: int) -> list[tuple[int, _Records]]:
    """Records by the partition of their key, in their order."""
    places = native.partitions_of(native.texts_of([record[0] for record in records]), partitions).tolist()
    rows: dict[int, list[Any]] = {}
    for record, partition in zip(records, places, strict=True):
        rows.setdefault(partition, []).append(record)
    return list(rows.items())


async def _abandon(producer: AIOKafkaProducer) -> None:
    """Stop a producer without delivering what it holds.

    aiokafka has no such call: `stop()` waits for every batch, and an idempotent producer retries a batch for ever. So
    its batches are failed and its sender cancelled first. That raises CancelledError out of `stop()`, which here would
    look like our own cancellation: hence a task, only waited for.
    """
    producer._message_accumulator.fail_all(KafkaError("the producer was abandoned"))
    if producer._sender.sender_task is not None:
        producer._sender.sender_task.cancel()
    closing = asyncio.create_task(_disconnect(producer))
    await asyncio.wait({closing}, timeout=5)
    closing.cancel()


async def _disconnect(producer: AIOKafkaProducer) -> None:
    with suppress(Exception):
        await producer.client.close()
        await producer.stop()


def _trouble_of(error: Exception, topic: str) -> str:
    if isinstance(error, KafkaConnectionError):
        return "no broker answers"
    if isinstance(error, UnknownTopicOrPartitionError):
        return f"topic {topic} does not exist"
    return str(error) or type(error).__name__
