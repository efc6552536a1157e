"""AI tasks as a gateway takes them in and tells of them: recorded in Kafka, known by the owners of their partitions.

A gateway keeps what it submitted lately, so that it knows a task before its owner has read of it, and in its journal what
it took while Kafka was away. What came under an idempotency key is compared with what its owner knows, if that answers soon,
else with what is kept here; what neither knows is recorded, and the owner's fold has the last word: the first record wins.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple, Protocol
from urllib.parse import quote, urlencode

import msgspec
import orjson
import structlog

from streams.web.ai.identity import digest_of
from streams.web.ai.journal import Entry
from streams.web.ai.keeper import Keeper, TaskLog
from streams.web.ai.live import state_of
from streams.web.ai.submission import Asking
from streams.web.owner import Answer, OwnerAway, Owners
from streams.web.publisher import Place, PublishUnavailable
from streams.web.recent import Recent
from topics.ai import Cancel, Status, Submit, TaskRecord, encode
from topics.ai_events import TaskEvent
from topics.event_ids import EventId

log = structlog.get_logger(__name__)

_PAUSE_S = 0.05
#: What the owner says beside the state that clients are shown.
_INNER = ("submit", "partition", "applied")


class Conflict(Exception):
    """The same idempotency key came with another body before."""


class TaskArchive(Protocol):
    """Where tasks are that their owners have forgotten."""

    async def task(self, task_id: str) -> dict[str, Any] | None:
        """A task as its owner described it; None when there is none. Raises ArchiveAway."""


class Submitted(NamedTuple):
    """A task that was taken, or was there before."""

    task_id: str
    status: str


class Page(NamedTuple):
    """Some tasks, newest first, and the cursor of what follows."""

    tasks: list[dict[str, Any]]
    cursor: str | None


class _Told(msgspec.Struct, frozen=True):
    """What an owner tells of a task."""

    events: list[TaskEvent]


class Tasks:
    """Takes tasks and cancels in, and asks owners of them. `url_of` gives the owner's address by partition.

    With a `journal` tasks are taken while Kafka is away too: what is in it is told of from it until Kafka has it. A submit
    with a key waits `key_within_s` for its owner; a cancel is waited for `within_s`.
    """

    def __init__(
        self,
        log: TaskLog,
        owners: Owners,
        url_of: Callable[[int], str | None],
        archive: TaskArchive,
        asking: Asking,
        journal: Keeper | None = None,
        within_s: float = 5.0,
        key_within_s: float = 1.0,
    ) -> None:
        self.asking = asking
        self.journal = journal
        self._log = log
        self._owners = owners
        self._url_of = url_of
        self._archive = archive
        self._within_s = within_s
        self._key_within_s = key_within_s
        self._late: dict[asyncio.Task[Answer], str | None] = {}
        # About the memory that a task takes: the question's characters, and a thousand bytes for the rest.
        self._recent = Recent[Submit](lambda submit: len(submit.question) + 1_000, most=20_000, bytes_max=64 << 20)

    async def submit(self, submit: Submit, *, keyed: bool) -> Submitted:
        """Record a task. With a key one that is known already is left as it is.

        Raises Conflict, and without a journal PublishUnavailable: the task may have been recorded then, and with a key is
        sent again safely. Raises JournalFull.
        """
        if keyed and (known := await self._known(submit)) is not None:
            return known
        recent = self._recent.remember(submit.task_id, submit)
        try:
            recent.place = await self._append(submit)
        except PublishUnavailable:
            self._recent.forget(recent)
            if self.journal is None:
                raise
            return self._journaled(submit, await self.journal.take(submit, digest_of(submit)))
        except BaseException:
            self._recent.forget(recent)
            raise
        return Submitted(submit.task_id, Status.PENDING)

    async def state(self, task_id: str) -> dict[str, Any] | None:
        """A task as its owner describes it, or ClickHouse where it is forgotten; None when there is none.

        Raises OwnerAway and ArchiveAway.
        """
        entry = await self.entry(task_id)
        if entry is not None and entry.sent_ms is None:
            return self._of(entry)
        answer = await self._ask(task_id)
        told = orjson.loads(answer.body)
        if answer.status != 404:
            return _shown(told)
        if entry is not None:
            # Kafka has it, and its owner has not read it yet.
            return self._of(entry)
        recent = self._recent.unread(task_id, told["applied"])
        return _pending(recent) if recent is not None else await self._archive.task(task_id)

    async def events(self, task_id: str, after: EventId | None) -> list[TaskEvent] | None:
        """What its owner tells of a task after an event; None when it knows none. Raises OwnerAway."""
        path = "/events" + (f"?after={after}" if after is not None else "")
        answer = await self._ask(task_id, path)
        if answer.status == 404:
            applied = orjson.loads(answer.body)["applied"]
            return [] if self._recent.unread(task_id, applied) is not None else None
        return msgspec.json.decode(answer.body, type=_Told).events

    async def cancel(self, task_id: str) -> dict[str, Any] | None:
        """Have a task end, and wait for its owner to have read of it; its state then. One that is over is left as it is.

        Raises OwnerAway, ArchiveAway and PublishUnavailable.
        """
        if self.journal is not None and await self.journal.cancel(task_id):
            return await self.state(task_id)
        state = await self.state(task_id)
        if state is None or Status(state["status"]).final:
            return state
        place = await self._append(Cancel(task_id))
        try:
            async with asyncio.timeout(self._within_s):
                while True:
                    told = orjson.loads((await self._ask(task_id)).body)
                    if told["applied"] > place.offset:
                        return _shown(told)
                    await asyncio.sleep(_PAUSE_S)
        except (TimeoutError, OwnerAway):
            return state

    async def entry(self, task_id: str) -> Entry | None:
        """A task that is in the journal, or was until lately."""
        return None if self.journal is None else await self.journal.get(task_id)

    async def page(self, wanted: Mapping[str, str], limit: int) -> Page:
        """Tasks that their owners know, newest first; `wanted` may name `user`, `status` and `before`. Raises OwnerAway."""
        path = "/ai/tasks?" + urlencode({**wanted, "limit": limit})
        answers = [(told["tasks"], told["partitions"]) for told in await self._everyone(path)]
        await self._all_answered(partition for _, partitions in answers for partition in partitions)
        found = [task for tasks, _ in answers for task in tasks] + await self._journaled_page(wanted, limit)
        # During a hand-over two workers may answer for the same partition.
        newest = {task["task_id"]: task for task in found}
        ordered = sorted(newest.values(), key=lambda task: (task["accepted_ms"], task["task_id"]), reverse=True)
        page = ordered[:limit]
        full = len(page) == limit
        return Page(page, f"{page[-1]['accepted_ms']}-{page[-1]['task_id']}" if full else None)

    async def queues(self) -> list[dict[str, Any]]:
        """The figures of every partition's queue. Raises OwnerAway."""
        answers = await self._everyone("/ai/queue")
        # During a hand-over two workers may answer for the same partition.
        queues = {queue["partition"]: queue for told in answers for queue in told["partitions"]}
        await self._all_answered(queues)
        return list(queues.values())

    async def _everyone(self, path: str) -> list[Any]:
        """What all workers answer."""
        one_of: dict[str | None, int] = {}
        for partition in range(await self._owners.partitions()):
            one_of.setdefault(self._url_of(partition), partition)
        answers = await asyncio.gather(*(self._owners.get(partition, path) for partition in one_of.values()))
        for answer in answers:
            if answer.status != 200:
                raise OwnerAway(f"a worker is not ready (it answered {answer.status})")
        return [orjson.loads(answer.body) for answer in answers]

    async def _all_answered(self, partitions: Iterable[int]) -> None:
        missing = set(range(await self._owners.partitions())) - set(partitions)
        if missing:
            raise OwnerAway(f"partition {min(missing)} has no worker that is ready")

    async def _known(self, submit: Submit) -> Submitted | None:
        """The task that was submitted under the same key before, as far as that can be told soon. Raises Conflict."""
        if self.journal is not None and self.journal.rows:
            entry = await self.entry(submit.task_id)
            if entry is not None and entry.sent_ms is None:
                return self._journaled(submit, entry)
        answer = await self._soon(submit)
        if answer is not None and answer.status != 404:
            told = orjson.loads(answer.body)
            _same(submit, _submit_of(told))
            return Submitted(submit.task_id, told["status"])
        recent = self._recent.get(submit.task_id)
        if recent is None:
            return None
        if answer is not None and self._recent.unread(submit.task_id, orjson.loads(answer.body)["applied"]) is None:
            return None  # its owner has forgotten it
        _same(submit, recent.submit)
        return Submitted(submit.task_id, Status.PENDING) if recent.place is not None else None

    async def _soon(self, submit: Submit) -> Answer | None:
        """What the owner says of a task, if it does so soon. Of one that is late nothing more is asked until it has answered:
        it is busy, and what nobody waits for would keep it busy."""
        try:
            url = self._url_of(await self._owners.partition_of(submit.task_id))
        except OwnerAway:
            return None
        if url in self._late.values():
            return None
        asking = asyncio.create_task(self._ask(submit.task_id))
        done, _ = await asyncio.wait([asking], timeout=self._key_within_s)
        if done:
            return None if isinstance(asking.exception(), OwnerAway) else asking.result()
        self._late[asking] = url
        asking.add_done_callback(lambda done: self._answered_late(submit, done))
        return None

    def _answered_late(self, submit: Submit, asking: asyncio.Task[Answer]) -> None:
        """The submit was recorded meanwhile. One that its owner refuses is not to be taken for the task any longer."""
        del self._late[asking]
        if asking.cancelled() or asking.exception() is not None or asking.result().status == 404:
            return
        known = _submit_of(orjson.loads(asking.result().body))
        recent = self._recent.get(submit.task_id)
        if recent is not None and digest_of(recent.submit) != digest_of(known):
            log.warning("idempotency_conflict", task_id=submit.task_id, user=submit.user)
            self._recent.forget(recent)

    def _journaled(self, submit: Submit, entry: Entry) -> Submitted:
        _same(submit, entry.submit)
        return Submitted(submit.task_id, self._of(entry)["status"])

    def _of(self, entry: Entry) -> dict[str, Any]:
        assert self.journal is not None
        return state_of(entry, self.journal.lives.get(entry.task_id))

    async def _journaled_page(self, wanted: Mapping[str, str], limit: int) -> list[dict[str, Any]]:
        """The newest tasks that only the journal has, of which `wanted` are."""
        if self.journal is None or not self.journal.rows:
            return []
        before_ms, _, before_id = wanted.get("before", "").partition("-")
        before = (int(before_ms), before_id) if before_ms else None
        entries = await self.journal.newest(wanted.get("user"), before, self.journal.limits.rows_max)
        states = [self._of(entry) for entry in entries]
        return [state for state in states if wanted.get("status") in (None, state["status"])][:limit]

    async def _ask(self, task_id: str, path: str = "") -> Answer:
        return await self._owners.about(task_id, f"/ai/tasks/{quote(task_id, safe='')}{path}")

    async def _append(self, record: TaskRecord) -> Place:
        encoded = encode(record)
        return await self._log.append([(encoded.key or b"", encoded.value, encoded.headers)])


def _same(submit: Submit, known: Submit) -> None:
    if digest_of(submit) != digest_of(known):
        raise Conflict(f"this key was used for another task before: {known.task_id}")


def _submit_of(told: dict[str, Any]) -> Submit:
    """What a task was submitted with, in its owner's words."""
    return msgspec.convert(told["submit"], Submit)


def _shown(told: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in told.items() if name not in _INNER}


def _pending(submit: Submit) -> dict[str, Any]:
    """What there is to tell of a task that its owner has not read yet."""
    return {
        "task_id": submit.task_id,
        "status": Status.PENDING,
        "user": submit.user,
        "task_type": submit.task_type,
        "language": submit.language,
        "model": submit.model,
        "result": None,
        "partial": "",
        "error": None,
        "attempts": 0,
        "usage": {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0, "cost": 0.0},
        "submitted_ms": submit.submitted_ms,
        "updated_ms": submit.submitted_ms,
    }
