"""One stream's worker process: a Faust app around the partitions that the group gives it.

Faust carries group membership, the fetch thread and the agent; partitions, tables, transactions and restore are ours
(`partition`). A rebalance revokes everything and assigns anew: partitions are drained at revoke with a deadline, those
kept go on with their state and producer, those lost are closed, new ones take over.

Whatever breaks the argument of exactly-once (a fenced producer, an unknown outcome, a lost log) ends the process through
`fail`; its supervisor starts it again, and the take-over restores what was committed.
"""

from __future__ import annotations

import asyncio
import os
import sys
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import faust
import structlog
from aiohttp import web
from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.errors import KafkaError
from confluent_kafka import KafkaException
from faust.types import TP
from prometheus_client import CollectorRegistry, ProcessCollector

from streams.runtime.access import KafkaAccess
from streams.runtime.admin import IdentityGuard, TopicAdmin
from streams.runtime.deadletters import DeadLetters
from streams.runtime.faults import Faults
from streams.runtime.fold import Fold, ObjectStore, RowSink
from streams.runtime.materialiser import Materialiser
from streams.runtime.metrics import StreamMetrics
from streams.runtime.outside import Outside, Seat
from streams.runtime.owners import announcement
from streams.runtime.partition import PartitionContext, PartitionRunner, RuntimeLimits
from streams.runtime.status import StatusServer
from streams.runtime.takeover import LogBounds
from streams.runtime.transport import BatchSchema, BatchTransport, FetchLimits
from streams.runtime.watchdog import Watchdog
from topics.specs import OWNERS, TopicSpec, changelog, changelog_name, compacted

log = structlog.get_logger(__name__)

#: The process gave up on its state; a supervisor starts it again.
EXIT_FAILED = 70
#: A stop takes at most this much longer than the deadline of its last flush, seconds.
CLOSE_S = 1.2
#: A server that has not answered a farewell by then hangs, seconds.
FAREWELL_S = 3.0


@dataclass(frozen=True)
class StreamSpec:
    """What a domain brings: its source, and its fold. `topics` are all it reads and writes; `routes` are what the
    worker's status endpoint answers beside its own, from the state of the partitions that it owns; `close` lets go of what
    the stream holds when the worker has ended."""

    stream: str
    source: str
    deadletter: str
    topics: tuple[TopicSpec, ...]
    make_fold: Callable[[int, int], Fold]  # (partition, partitions)
    make_outside: Callable[[Seat, Any], Outside] | None = None  # (seat, what make_fold made for its partition)
    routes: Callable[[StreamWorker], Sequence[web.RouteDef]] | None = None
    close: Callable[[], None] = lambda: None

    @property
    def group(self) -> str:
        """The consumer group, and the prefix of transactional ids."""
        return f"sluiceway-{self.stream}"


@dataclass(frozen=True)
class WorkerConfig:
    """How one worker runs; sizes in bytes, times in seconds."""

    kafka: KafkaAccess
    data_dir: Path
    limits: RuntimeLimits = field(default_factory=RuntimeLimits)
    fetch: FetchLimits = field(default_factory=FetchLimits)
    replication_factor: int = 1
    deadletter_max_bytes: int = 1 << 20
    status_host: str = "127.0.0.1"
    status_port: int = 0
    flush_deadline_s: float = 7.5
    watchdog_s: float = 60.0
    rollup_interval_s: float = 0.7


class StreamWorker:
    """Runs one stream until stopped. `run` returns after a clean drain; a broken guarantee exits the process instead."""

    def __init__(
        self, spec: StreamSpec, config: WorkerConfig, sink: RowSink, objects: ObjectStore, faults: Faults
    ) -> None:
        self._spec = spec
        self._config = config
        self._sink = sink
        self._objects = objects
        self._faults = faults
        self.runners: dict[int, PartitionRunner] = {}
        self.registry = CollectorRegistry()
        # CPU time and memory of this process alone: what it has others do is not in it.
        ProcessCollector(registry=self.registry)
        self.metrics = StreamMetrics(spec.stream, self.registry)
        self._admin = TopicAdmin(config.kafka.librdkafka(), config.replication_factor)
        self._dead_letters = DeadLetters(spec.stream, spec.deadletter, config.deadletter_max_bytes, objects)
        self._stopping = False
        self._app, self._transport = self._make_app()
        self._observer: AIOKafkaConsumer | None = None
        self._witness: AIOKafkaConsumer | None = None
        self._context: PartitionContext | None = None
        self._materialiser: Materialiser | None = None
        self._background: list[asyncio.Task[None]] = []
        self._open: list[Callable[[], Awaitable[Any]]] = []  # how to close what is open, in the order of opening
        self.assigned = False
        #: Of the source topic; 0 until it is known, before any route is served.
        self.partitions = 0

    async def run(self, stop: asyncio.Event) -> None:
        """Serve until `stop` is set, then drain, commit and leave the group.

        In every state, and with any server away, it returns within `flush_deadline_s` and CLOSE_S of the stop.
        """
        starting, stopped = asyncio.create_task(self._start()), asyncio.create_task(stop.wait())
        await asyncio.wait([starting, stopped], return_when=asyncio.FIRST_COMPLETED)
        if not stop.is_set():
            await starting
            await self._until_stopped(stop)
        starting.cancel()
        await self._shut_down()

    def feed(self, batch: Any) -> None:
        """One fetched batch from the agent."""
        runner = self.runners.get(batch.partition)
        if runner is not None:
            runner.feed(batch)

    def fail(self, where: str, error: BaseException) -> None:
        """End the process at once: what was really committed is restored by the next one."""
        if self._stopping and isinstance(error, (KafkaError, KafkaException, TimeoutError)):
            log.warning("stopped without the last flush", where=where, error=f"{type(error).__name__}: {error}")
            os._exit(0)
        log.critical("giving up this process", where=where, error=f"{type(error).__name__}: {error}", exc_info=error)
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(EXIT_FAILED)

    @property
    def stream(self) -> str:
        """The stream's name."""
        return self._spec.stream

    @property
    def source(self) -> str:
        """The source topic."""
        return self._spec.source

    @property
    def sink_available(self) -> bool:
        """Whether rows and objects can be written."""
        return self._sink.available and self._objects.available

    @property
    def ready(self) -> bool:
        """Whether every assigned partition is restored."""
        return self.assigned and all(runner.ready.is_set() for runner in self.runners.values())

    async def log_ends(self, partitions: list[int]) -> dict[int, int]:
        """The readable end of each source partition (the last stable offset). Raises KafkaError without a broker."""
        assert self._observer is not None
        ends = await self._observer.end_offsets([TopicPartition(self._spec.source, p) for p in partitions])
        return {tp.partition: offset for tp, offset in ends.items()}

    async def written_ends(self, partitions: list[int]) -> dict[int, int]:
        """The end of all that was written to each source partition, by transactions still open too. Raises KafkaError."""
        assert self._witness is not None
        ends = await self._witness.end_offsets([TopicPartition(self._spec.source, p) for p in partitions])
        return {tp.partition: offset for tp, offset in ends.items()}

    async def log_starts(self, partitions: list[int]) -> dict[int, int]:
        """The first retained offset of each source partition."""
        assert self._observer is not None
        starts = await self._observer.beginning_offsets([TopicPartition(self._spec.source, p) for p in partitions])
        return {tp.partition: offset for tp, offset in starts.items()}

    async def identity(self) -> str:
        """The source topic's current id."""
        assert self._context is not None
        return (await self._context.guard.current()).topic_id

    # -- making -------------------------------------------------------------------------------------------------

    async def _start(self) -> None:
        await self._admin.wait_for_broker()
        self.partitions = await self._prepare_topics()
        status = StatusServer(self, self._spec.routes(self) if self._spec.routes else ())
        self._open.append(status.stop)
        url = await status.start(self._config.status_host, self._config.status_port)
        self._observer = await self._asking_client("read_committed")
        self._witness = await self._asking_client("read_uncommitted")
        self._context = self._make_context(url)
        watchdog = Watchdog(self, self._config.watchdog_s)
        self._materialiser = Materialiser(
            self, self._sink, self._faults, self._config.rollup_interval_s, self.partitions
        )
        self._background = [asyncio.create_task(watchdog.run()), asyncio.create_task(self._materialiser.run())]
        for task in self._background:
            task.add_done_callback(self._background_ended)
        self._open.append(self._app.stop)
        await self._app.start()

    async def _asking_client(self, isolation_level: str) -> AIOKafkaConsumer:
        """A client that reads nothing and asks how far the log goes."""
        client = AIOKafkaConsumer(enable_auto_commit=False, isolation_level=isolation_level, **self._clients())
        self._open.append(client.stop)
        await client.start()
        return client

    def _clients(self) -> dict[str, Any]:
        return self._config.kafka.aiokafka()

    async def _prepare_topics(self) -> int:
        """Make and check all topics; the source's own partition count is what everything beside it follows."""
        spec = self._spec
        await self._admin.ensure([*spec.topics, compacted(OWNERS, 1)])
        partitions = (await self._admin.identify(spec.source)).partitions
        await self._admin.ensure([changelog(changelog_name(spec.group), partitions)])
        return partitions

    def _make_app(self) -> tuple[faust.App, BatchTransport]:
        config, spec = self._config, self._spec
        # Faust makes its folder tree at start; nothing of ours is in it.
        folder = config.data_dir / "faust"
        folder.mkdir(parents=True, exist_ok=True)
        app = faust.App(
            spec.group,
            broker=f"kafka://{config.kafka.bootstrap.replace(',', ';kafka://')}",
            datadir=str(folder / spec.stream),
            topic_disable_leader=True,
            topic_allow_declare=False,
            web_enabled=False,
            stream_recovery_delay=0.0,
            stream_wait_empty=False,
            broker_session_timeout=config.fetch.session_timeout_ms / 1000,
            broker_heartbeat_interval=config.fetch.heartbeat_ms / 1000,
            consumer_auto_offset_reset="earliest",
            autodiscover=False,
        )
        transport = BatchTransport(app.conf.broker, app, limits=config.fetch, client_settings=config.kafka.aiokafka())
        app.transport = transport
        self._register_agent(app)
        app.on_partitions_revoked.connect(self._on_revoked)
        app.on_partitions_assigned.connect(self._on_assigned)
        return app, transport

    def _register_agent(self, app: faust.App) -> None:
        """The stream's agent: each item of its topic's stream is one fetch of one partition."""
        source = app.topic(self._spec.source, schema=BatchSchema())

        @app.agent(source, name=self._spec.stream)  # type: ignore[untyped-decorator]
        async def fold(stream: Any) -> None:
            async for event in stream.events():
                self.feed(event.message.value)

    def _make_context(self, url: str) -> PartitionContext:
        spec, config = self._spec, self._config
        return PartitionContext(
            stream=spec.stream,
            group=spec.group,
            source=spec.source,
            changelog=changelog_name(spec.group),
            limits=config.limits,
            client_settings=self._clients(),
            make_fold=lambda partition: spec.make_fold(partition, self.partitions),
            make_outside=spec.make_outside,
            sink=self._sink,
            dead_letters=self._dead_letters,
            guard=IdentityGuard(self._admin, spec.source),
            bounds=self._bounds,
            hold=self._hold,
            seek=self._seek,
            announce=lambda partition, term: announcement(spec.stream, partition, url, term),
            fail=self.fail,
            metrics=self.metrics.partition,
            faults=self._faults,
        )

    async def _bounds(self, partition: int) -> LogBounds:
        start = (await self.log_starts([partition]))[partition]
        return LogBounds(start, (await self.log_ends([partition]))[partition])

    def _hold(self, partition: int, held: bool) -> None:
        holds = self._transport.holds
        (holds.hold if held else holds.release)(self._spec.source, partition)

    async def _seek(self, partition: int, offset: int) -> None:
        await self._app.consumer.seek(TP(self._spec.source, partition), offset)

    # -- rebalance ----------------------------------------------------------------------------------------------

    async def _on_revoked(self, app: Any, revoked: set[TP], **_: Any) -> None:
        deadline_s = min(self._config.flush_deadline_s, self._config.fetch.session_timeout_ms / 2000)
        await asyncio.gather(*(runner.drain(deadline_s) for runner in self.runners.values()))

    async def _on_assigned(self, app: Any, assigned: set[TP], **_: Any) -> None:
        if self._stopping:
            return
        wanted = {tp.partition for tp in assigned if tp.topic == self._spec.source}
        log.info("assigned", stream=self._spec.stream, partitions=sorted(wanted))
        lost = [self.runners.pop(p) for p in set(self.runners) - wanted]
        new = sorted(wanted - set(self.runners))
        # Before anything is waited for: Faust lets batches flow meanwhile.
        for runner in self.runners.values():
            runner.resume()
        for partition in new:
            self._hold(partition, True)
        await asyncio.gather(*(runner.close() for runner in lost))
        assert self._context is not None
        for partition in new:
            self.runners[partition] = PartitionRunner(self._context, partition)
        self.assigned = True

    # -- ending -------------------------------------------------------------------------------------------------

    async def _until_stopped(self, stop: asyncio.Event) -> None:
        crashed = asyncio.create_task(self._app.wait_until_stopped())
        stopped = asyncio.create_task(stop.wait())
        await asyncio.wait([crashed, stopped], return_when=asyncio.FIRST_COMPLETED)
        if not stop.is_set():
            self.fail("consumer", self._app.crash_reason or RuntimeError("the Faust app stopped by itself"))
        crashed.cancel()

    async def _shut_down(self) -> None:
        started = time.monotonic()
        self._stopping = True
        deadline_s = self._config.flush_deadline_s
        drained = await asyncio.gather(*(runner.drain(deadline_s) for runner in self.runners.values()))
        await self._write_last_rollups(max(0.5, started + deadline_s - time.monotonic()))
        # Not cancelled but left: what waits for a server that hangs may not heed it, and the process ends anyway.
        closing = asyncio.create_task(self._close())
        left_s = started + deadline_s + CLOSE_S - time.monotonic()
        await asyncio.wait([closing], timeout=min(left_s, FAREWELL_S))
        clean = all(drained) and closing.done()
        log.info("drained", stream=self._spec.stream, clean=clean, s=round(time.monotonic() - started, 2))

    async def _write_last_rollups(self, deadline_s: float) -> None:
        if self._materialiser is None or not self._sink.available:
            return
        try:
            async with asyncio.timeout(deadline_s):
                await self._materialiser.once()
        except TimeoutError:
            log.info("rollups are written at the next start")

    async def _close(self) -> None:
        for task in self._background:
            task.remove_done_callback(self._background_ended)
            task.cancel()
        await asyncio.gather(*self._background, return_exceptions=True)
        await asyncio.gather(*(runner.close() for runner in self.runners.values()))
        for close in reversed(self._open):
            await close()

    def _background_ended(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled():
            self.fail("background task", task.exception() or RuntimeError("a background task ended"))
