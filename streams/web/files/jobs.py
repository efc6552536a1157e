"""File jobs as the gateway knows them: it writes them to Kafka, and asks the owners of their partitions what became of them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any, Protocol
from urllib.parse import quote

import msgspec
import orjson

from streams.web.owner import Answer, OwnerAway, Owners
from streams.web.publisher import HeadedRecord, Place
from streams.web.recent import Recent
from topics.event_ids import EventId
from topics.files import Cancel, JobRecord, Status, Submit, encode
from topics.files_events import FINAL_EVENTS, JobEvent

#: A quiet follower's owner is asked again this often, and its client is sent a comment.
LOOK_S = 5.0
#: How long a submit with a key waits for its owner.
_KEY_WITHIN_S = 1.0

_events = msgspec.json.Decoder(list[JobEvent]).decode


class JobLog(Protocol):
    """`files.jobs.v1`."""

    async def append(self, records: Sequence[HeadedRecord]) -> Place:
        """Write records of one key; where the first lies. Raises PublishUnavailable."""


class JobArchive(Protocol):
    """Where jobs are that their owners have forgotten."""

    async def job(self, job_id: str) -> dict[str, Any] | None:
        """A job as its owner described it; None when there is none. Raises ArchiveAway."""


class JobConflict(Exception):
    """The idempotency key was used for another job."""


class Jobs:
    """Submits, asks after, cancels and follows jobs."""

    def __init__(self, log: JobLog, owners: Owners, archive: JobArchive) -> None:
        self._log = log
        self._owners = owners
        self._archive = archive
        self._recent = Recent[Submit](lambda submit: len(msgspec.json.encode(submit)), most=10_000, bytes_max=32 << 20)
        self._bells: dict[str, list[asyncio.Event]] = {}
        self._asking: dict[tuple[str, EventId | None], asyncio.Task[list[JobEvent] | None]] = {}
        self._stopped = False

    async def submit(self, submit: Submit, *, keyed: bool) -> Status:
        """Record a job; its status. One that came with an idempotency key may be there already. Raises JobConflict,
        PublishUnavailable."""
        if keyed:
            # A fold compares too, if no owner answers now: the same job again changes nothing.
            known = await self._known(submit.job_id)
            if known is not None:
                if _asked(known[0]) != _asked(submit):
                    raise JobConflict(f"this key was used for another job before: {submit.job_id}")
                return known[1]
        self._recent.remember(submit.job_id, submit, await self._append(submit))
        return Status.ACCEPTED

    async def state(self, job_id: str) -> dict[str, Any] | None:
        """What the job's owner says of it, or ClickHouse where that has forgotten it: then `archived` is true. None if there
        is none. Raises OwnerAway, ArchiveAway."""
        answer = await self._ask(job_id)
        told: dict[str, Any] = orjson.loads(answer.body)
        if answer.status == 200:
            return told
        recent = self._recent.unread(job_id, told["applied"])
        if recent is not None:
            return _accepted(recent)
        kept = await self._archive.job(job_id)
        return kept and {**kept, "archived": True}

    async def cancel(self, job_id: str) -> None:
        """Record that nobody wants the result. Raises PublishUnavailable."""
        await self._append(Cancel(job_id))

    async def follow(self, job_id: str, after: EventId | None) -> AsyncGenerator[JobEvent | None, None]:
        """The job's events after one, as they are committed, up to its end, or until its owner has forgotten it; None when
        nothing came for a while, and at first where there is nothing to tell yet. Raises OwnerAway.
        """
        with self._listening(job_id) as bell:
            while not self._stopped:
                bell.clear()
                events = await self._events(job_id, after)
                if events is None:
                    return
                for event in events:
                    yield event
                    after = event.id
                    if isinstance(event, FINAL_EVENTS):
                        return
                if not events:
                    yield None
                with suppress(TimeoutError):
                    async with asyncio.timeout(LOOK_S):
                        await bell.wait()

    def note(self, key: bytes, value: bytes | None) -> None:
        """Take one record of `files.progress.v1`: who follows its job asks the owner."""
        for bell in self._bells.get(key.decode("ascii", "replace"), ()):
            bell.set()

    def stop(self) -> None:
        """The gateway stops: no stream goes on."""
        self._stopped = True
        for bells in self._bells.values():
            for bell in bells:
                bell.set()

    @contextmanager
    def _listening(self, job_id: str) -> Iterator[asyncio.Event]:
        bell = asyncio.Event()
        self._bells.setdefault(job_id, []).append(bell)
        try:
            yield bell
        finally:
            self._bells[job_id].remove(bell)
            if not self._bells[job_id]:
                del self._bells[job_id]

    async def _events(self, job_id: str, after: EventId | None) -> list[JobEvent] | None:
        """None where the owner knows no such job, and none is to come. All whom one event woke share a question: thousands
        who follow a job are no load of its worker."""
        place = (job_id, after)
        if (asking := self._asking.get(place)) is None:
            asking = self._asking[place] = asyncio.create_task(self._asked_events(*place))
            asking.add_done_callback(lambda done: done.cancelled() or done.exception())
        return await asyncio.shield(asking)

    async def _asked_events(self, job_id: str, after: EventId | None) -> list[JobEvent] | None:
        # Whoever comes from now on may know of something newer than the answer will, and asks again.
        del self._asking[job_id, after]
        answer = await self._ask(job_id, f"/events?after={after}" if after else "/events")
        told = orjson.loads(answer.body)
        if answer.status == 200:
            return _events(orjson.dumps(told["events"]))
        return None if self._recent.unread(job_id, told["applied"]) is None else []

    async def _known(self, job_id: str) -> tuple[Submit, Status] | None:
        """What was submitted under this id and how it stands: in its owner's words, or while that is silent in those of
        this gateway."""
        try:
            async with asyncio.timeout(_KEY_WITHIN_S):
                answer = await self._ask(job_id)
        except (OwnerAway, TimeoutError):
            recent = self._recent.get(job_id)
            return None if recent is None else (recent.submit, Status.ACCEPTED)
        told = orjson.loads(answer.body)
        if answer.status == 404:
            unread = self._recent.unread(job_id, told["applied"])
            return None if unread is None else (unread, Status.ACCEPTED)
        return msgspec.convert(told["submit"], Submit), Status(told["status"])

    async def _ask(self, job_id: str, path: str = "") -> Answer:
        return await self._owners.about(job_id, f"/files/jobs/{quote(job_id, safe='')}{path}")

    async def _append(self, record: JobRecord) -> Place:
        encoded = encode(record)
        return await self._log.append([(encoded.key or b"", encoded.value, encoded.headers)])


def _asked(submit: Submit) -> Submit:
    """What was asked for: the time differs when a request is sent again."""
    return msgspec.structs.replace(submit, submitted_ms=0)


def _accepted(submit: Submit) -> dict[str, Any]:
    """What there is to tell of a job that its owner has not read yet."""
    return {
        "job_id": submit.job_id,
        "status": Status.ACCEPTED,
        "progress": 0,
        "format": submit.format,
        "r2_key": None,
        "size_bytes": None,
        "error": None,
        "submitted_ms": submit.submitted_ms,
        "updated_ms": submit.submitted_ms,
    }
