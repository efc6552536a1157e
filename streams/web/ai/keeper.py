"""Keeps the journal: takes tasks while Kafka is away, does them, and hands all of it to Kafka when it is back."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import ParamSpec, Protocol, TypeVar

import structlog

from streams.web.ai.direct import DirectWork
from streams.web.ai.journal import Entry, Journal, JournalFull, State
from streams.web.ai.live import Live
from streams.web.publisher import HeadedRecord, Place, PublishUnavailable
from topics.ai import Cancel, Outcome, Submit, TaskRecord, encode

_P = ParamSpec("_P")
_T = TypeVar("_T")

log = structlog.get_logger(__name__)


class TaskLog(Protocol):
    """Kafka's `ai.tasks.v1`, as a gateway writes it."""

    @property
    def connected(self) -> bool:
        """Whether a broker was there a moment ago."""

    async def append(self, records: Sequence[HeadedRecord]) -> Place:
        """Records of one task in their order; the first one's place. Raises PublishUnavailable: they may have been
        stored, and are sent again."""


@dataclass(frozen=True)
class JournalLimits:
    """Bounds and paces. At the start Kafka is given `patience_s` to answer before the journal's tasks are done here."""

    rows_max: int = 10_000
    bytes_max: int = 256 << 20
    patience_s: float = 5.0
    pause_s: float = 0.25
    batch: int = 100
    keep_sent_s: float = 3_600.0


class Keeper:
    """The journal's life in one gateway. What is done here is done at most `work.room()` tasks at once."""

    def __init__(self, folder: Path, task_log: TaskLog, work: DirectWork, limits: JournalLimits | None = None) -> None:
        self.limits = limits or JournalLimits()
        self.lives: dict[str, Live] = {}
        self.sent = 0
        self._folder = folder
        self._log = task_log
        self._work = work
        self._journal: Journal | None = None
        self._disk = ThreadPoolExecutor(1, thread_name_prefix="journal")
        self._wake = asyncio.Event()
        self._running: dict[str, asyncio.Task[None]] = {}
        self._loop: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Open the journal and go on with what it holds. Raises JournalFull where there is no place for one."""
        limits = self.limits
        self._journal = await self._on_disk(Journal, self._folder, limits.rows_max, limits.bytes_max)
        self._loop = asyncio.create_task(self._run(), name="journal")

    async def close(self) -> None:
        """Stop; what is under way begins again at the next start."""
        tasks = [*self._running.values(), *([] if self._loop is None else [self._loop])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if self._journal is not None:
            await self._on_disk(self._journal.close)
        self._disk.shutdown()

    @property
    def rows(self) -> int:
        """Tasks that wait here for Kafka."""
        return self._journal.rows if self._journal is not None else 0

    @property
    def bytes(self) -> int:
        """Their bytes."""
        return self._journal.bytes if self._journal is not None else 0

    async def take(self, submit: Submit, digest: str) -> Entry:
        """Take a task; on disk when this returns. Raises JournalFull."""
        entry = await self._on_disk(self._open().take, submit, digest, _now_ms())
        self._wake.set()
        return entry

    async def get(self, task_id: str) -> Entry | None:
        """A task that is here, or was until lately."""
        return await self._on_disk(self._open().get, task_id)

    async def newest(self, user: str | None, before: tuple[int, str] | None, limit: int) -> list[Entry]:
        """See `Journal.newest`."""
        return await self._on_disk(self._open().newest, user, before, limit)

    async def cancel(self, task_id: str) -> bool:
        """End a task that is here; False when it is over, or Kafka has it."""
        cancelled = await self._on_disk(self._open().cancel, task_id)
        if cancelled:
            running = self._running.get(task_id)
            if running is not None:
                running.cancel()
            await self._told_end(task_id)
            self._wake.set()
        return cancelled

    async def _run(self) -> None:
        patient_until = time.monotonic() + self.limits.patience_s
        forgotten = 0.0
        while True:
            try:
                if self._log.connected:
                    patient_until = 0.0
                handed_on = self._log.connected and await self._hand_on()
                if not handed_on and time.monotonic() >= patient_until:
                    await self._begin_waiting()
                if time.monotonic() - forgotten > 60:
                    forgotten = time.monotonic()
                    before_ms = _now_ms() - round(self.limits.keep_sent_s * 1000)
                    await self._on_disk(self._open().forget, before_ms)
            except JournalFull as error:
                log.error("journal_unwritable", error=str(error))
                await asyncio.sleep(1.0)
            with suppress(TimeoutError):
                async with asyncio.timeout(self.limits.pause_s):
                    await self._wake.wait()
            self._wake.clear()

    async def _hand_on(self) -> bool:
        """Send what Kafka is to know; False when it did not take it."""
        for state in (State.WAITING, State.ENDED, State.CANCELLED):
            while entries := [
                entry
                for entry in await self._on_disk(self._open().unsent, state, self.limits.batch)
                if entry.task_id not in self._running
            ]:
                sends = (self._log.append(_records(entry)) for entry in entries)
                outcomes = await asyncio.gather(*sends, return_exceptions=True)
                for entry, outcome in zip(entries, outcomes, strict=True):
                    if isinstance(outcome, PublishUnavailable):
                        continue
                    if isinstance(outcome, BaseException):
                        raise outcome
                    if await self._on_disk(self._open().sent, entry, _now_ms()):
                        self.sent += 1
                        self._let_go(entry.task_id)
                if any(isinstance(outcome, PublishUnavailable) for outcome in outcomes):
                    return False
        return True

    def _let_go(self, task_id: str) -> None:
        live = self.lives.pop(task_id, None)
        if live is not None and not live.over:
            live.ended(live.entry)

    async def _begin_waiting(self) -> None:
        room = self._work.room() - len(self._running)
        if room <= 0:
            return
        for entry in await self._on_disk(self._open().unsent, State.WAITING, room):
            if entry.task_id not in self._running:
                task = asyncio.create_task(self._do(entry), name=f"direct {entry.task_id}")
                self._running[entry.task_id] = task
                task.add_done_callback(lambda _, task_id=entry.task_id: self._done(task_id))  # type: ignore[misc]

    def _done(self, task_id: str) -> None:
        task = self._running.pop(task_id)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("direct_work_failed", task_id=task_id, error=repr(error))
        self._wake.set()

    async def _do(self, entry: Entry) -> None:
        starts = await self._on_disk(self._open().begin, entry.task_id)
        live = Live(entry._replace(state=State.RUNNING, starts=starts))
        self.lives[entry.task_id] = live
        outcome = await self._work.do(entry.submit, starts - 1, live)
        while True:
            try:
                await self._on_disk(self._open().end, outcome)
                break
            except JournalFull as error:
                log.error("journal_unwritable", error=str(error))
                await asyncio.sleep(1.0)
        await self._told_end(entry.task_id)

    async def _told_end(self, task_id: str) -> None:
        entry = await self.get(task_id)
        live = self.lives.get(task_id)
        if live is not None and entry is not None and not live.over:
            live.ended(entry)

    def _open(self) -> Journal:
        assert self._journal is not None, "the keeper was not started"
        return self._journal

    async def _on_disk(self, what: Callable[_P, _T], *args: _P.args, **kwargs: _P.kwargs) -> _T:
        return await asyncio.get_running_loop().run_in_executor(self._disk, partial(what, *args, **kwargs))


def _records(entry: Entry) -> list[HeadedRecord]:
    """What Kafka is told of a task: that it is there, or with it how it ended. An outcome carries its task, so that no
    worker sees the one without the other."""
    records: list[TaskRecord] = [entry.submit]
    if entry.state is State.CANCELLED:
        records.append(Cancel(entry.task_id))
    if isinstance(entry.outcome, Outcome):
        records = [entry.outcome]
    encoded = [encode(record) for record in records]
    return [(record.key or b"", record.value, record.headers) for record in encoded]


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
