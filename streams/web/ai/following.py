"""A task as a client follows it: what its owner tells of it so far, then every event as it is committed.

Events come from the tail of `ai.results.v1`; the owner is asked at the start, after a gap, and now and then while nothing
comes. An event has the same id wherever it comes from, so that a client resumes at any gateway.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from typing import Any

from streams.web.ai import told
from streams.web.ai.followers import Follower, Followers
from streams.web.ai.journal import State
from streams.web.ai.live import state_of
from streams.web.ai.tasks import Tasks
from streams.web.ai.told import Told
from streams.web.sse import ARCHIVED_ID
from topics.ai import Status
from topics.ai_events import (
    FINAL_EVENTS,
    AttemptDiscarded,
    AttemptStarted,
    SegmentCompleted,
    TaskAccepted,
    TaskEvent,
    TextWritten,
)
from topics.event_ids import EventId, parse_event_id

#: A silent follower's owner is asked again this often, and its client is sent a comment.
LOOK_S = 5.0
#: The ids of what a gateway tells of its own work begin so; the end of what it did in another life.
JOURNAL_ID = "journal-"
ENDED_ID = "journal-ended"
_UNBEGUN_S = 0.2


class NoTask(Exception):
    """There is none of that id."""


async def follow(
    task_id: str, last_id: str, tasks: Tasks, followers: Followers, look_s: float = LOOK_S
) -> AsyncGenerator[Told | None, None]:
    """What is told of a task after the event of an id, up to its end; None when nothing came for a while, and at first where
    there is nothing to tell yet. Raises NoTask, OwnerAway and ArchiveAway."""
    async for own in _direct(task_id, last_id, tasks):
        yield own
        if own is not None:
            last_id = own.id
            if own.final:
                return
    # What a gateway has told of its own work is told anew by the task's owner.
    void = last_id.startswith(JOURNAL_ID)
    after = parse_event_id(last_id)
    with followers.follow(task_id) as follower:
        while not follower.stopped:
            follower.catch_up()
            events = await tasks.events(task_id, after)
            if events is None:
                state = await tasks.state(task_id)
                if state is None:
                    raise NoTask(task_id)
                if Status(state["status"]).final:
                    yield _end(ARCHIVED_ID, state)
                    return
                events = []
            for event in events:
                if _is_told(event):
                    event_told = await _told(event, tasks)
                    if void and isinstance(event, TaskAccepted):
                        event_told.data["discard"] = True
                    yield event_told
                after = event.id
                if isinstance(event, FINAL_EVENTS):
                    return
            yield None
            async for event in _fresh(follower, after, _expected(events), look_s):
                if _is_told(event):
                    yield await _told(event, tasks)
                after = event.id
                if isinstance(event, FINAL_EVENTS):
                    return


async def _direct(task_id: str, last_id: str, tasks: Tasks) -> AsyncGenerator[Told | None, None]:
    """What this gateway tells of a task that it does itself, as long as Kafka does not know it."""
    entry = await tasks.entry(task_id)
    while entry is not None and entry.sent_ms is None:
        assert tasks.journal is not None
        live = tasks.journal.lives.get(task_id)
        if live is None:
            if entry.state in (State.ENDED, State.CANCELLED):
                if last_id != ENDED_ID:
                    yield _end(ENDED_ID, state_of(entry, None))
                return
            yield None
            await asyncio.sleep(_UNBEGUN_S)
        else:
            ids = [event.id for event in live.events]
            at = ids.index(last_id) + 1 if last_id in ids else 0
            while at < len(live.events) or not live.over:
                if at == len(live.events):
                    yield None
                    await live.wait()
                    continue
                yield live.events[at]
                at += 1
            if live.events[-1].final:
                return
        entry = await tasks.entry(task_id)


async def _fresh(
    follower: Follower, after: EventId | None, block: int | None, look_s: float
) -> AsyncIterator[TaskEvent]:
    """Events as they come, until there is a gap or nothing comes. `block` is the next one of the answer, where known."""
    while not follower.behind and (event := await follower.next(look_s)) is not None:
        if after is not None and event.id <= after:
            continue
        if isinstance(event, TextWritten) and event.segment is None:
            if block is not None and event.block != block:
                return
            block = event.block + 1
        elif isinstance(event, AttemptStarted) and event.segment is None:
            block = 0
        after = event.id
        yield event


def _expected(events: list[TaskEvent]) -> int | None:
    """The block that follows these events."""
    for event in reversed(events):
        if isinstance(event, TextWritten) and event.segment is None:
            return event.block + 1
        if isinstance(event, AttemptStarted) and event.segment is None:
            return 0
    return None


def _is_told(event: TaskEvent) -> bool:
    """Of a segment it is told how far it is, not what it says."""
    return not isinstance(event, TextWritten) or event.segment is None


async def _told(event: TaskEvent, tasks: Tasks) -> Told:
    """An event as clients are told of it."""
    event_id, task_id = str(event.id), event.task_id
    match event:
        case TaskAccepted():
            return told.status(event_id, task_id, Status.PENDING, segments=event.segments)
        case TextWritten():
            return told.token(event_id, event.attempt, event.kind, event.text)
        case AttemptStarted():
            more: dict[str, Any] = {"attempt": event.attempt, "segment": event.segment}
        case AttemptDiscarded():
            more = {
                "attempt": event.attempt,
                "segment": event.segment,
                "discard": event.segment is None,
                "error_type": event.error_type,
                "retry_after_ms": event.retry_after_ms,
            }
        case SegmentCompleted():
            more = {"segment": event.segment, "segments": event.segments}
        case _:
            state = await tasks.state(task_id)
            assert state is not None, "a task that was told to have ended is known"
            return _end(event_id, state)
    return told.status(event_id, task_id, Status.PROCESSING, **more)


def _end(event_id: str, state: dict[str, Any]) -> Told:
    match state["status"]:
        case Status.COMPLETED:
            return told.result(event_id, state)
        case Status.FAILED:
            return told.error(event_id, state)
        case _:
            return told.status(event_id, state["task_id"], state["status"])
