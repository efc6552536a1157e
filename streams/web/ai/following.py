"""A task as a client follows it: what its owner tells of it so far, then every event as it is committed.

Events come from the tail of `ai.results.v1`; the owner is asked at the start, after a gap, and now and then while nothing
comes. An event has the same id wherever it comes from, so that a client resumes at any gateway.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator
from typing import Any

from streams.web.ai import told
from streams.web.ai.followers import Follower, Followers
from streams.web.ai.tasks import Tasks
from streams.web.ai.told import Told
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
from topics.event_ids import EventId

#: A silent follower's owner is asked again this often, and its client is sent a comment.
LOOK_S = 5.0
#: The id of the end of a task that its owner has forgotten.
ARCHIVED_ID = "archived"


class NoTask(Exception):
    """There is none of that id."""


async def follow(
    task_id: str, after: EventId | None, tasks: Tasks, followers: Followers, look_s: float = LOOK_S
) -> AsyncGenerator[Told | None, None]:
    """What is told of a task after an event, up to its end; None when nothing came for a while, and at first where there is
    nothing to tell yet. Raises NoTask, OwnerAway and ArchiveAway."""
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
                    yield await _told(event, tasks)
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
