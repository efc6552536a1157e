"""Following a task: each event once and in order, whatever the tail drops, repeats or brings late."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from typing import Any, cast

import pytest

from streams.web.ai.followers import Followers
from streams.web.ai.following import ARCHIVED_ID, NoTask, follow
from streams.web.ai.tasks import Tasks
from streams.web.ai.told import Told
from topics.ai import Kind
from topics.ai_events import (
    AttemptDiscarded,
    AttemptStarted,
    Figures,
    TaskAccepted,
    TaskCancelled,
    TaskCompleted,
    TaskEvent,
    TextWritten,
    encode_event,
)
from topics.event_ids import EventId


def _where(number: int) -> dict[str, Any]:
    place = {"source_partition": 0, "epoch": 1, "source_offset": number, "number": 0}
    return {"task_id": "t", "user": "ada", "at_ms": 1, **place}


def accepted(number: int) -> TaskEvent:
    about = {"task_type": "question", "language": "en", "model": "m", "segments": 1, "submitted_ms": 1}
    return TaskAccepted(**_where(number), **about)


def started(number: int, attempt: int = 1) -> TaskEvent:
    return AttemptStarted(**_where(number), segment=None, attempt=attempt, lease_ms=1)


def text(number: int, block: int, segment: int | None = None) -> TaskEvent:
    word = f"{number} "
    return TextWritten(**_where(number), segment=segment, attempt=1, block=block, kind=Kind.ANSWER, text=word)


def discarded(number: int) -> TaskEvent:
    return AttemptDiscarded(**_where(number), segment=None, attempt=1, error_type="lost", retry_after_ms=0)


def completed(number: int) -> TaskEvent:
    return TaskCompleted(**_where(number), result="", figures=Figures())


class Owner:
    """Knows the task's events so far; what is told in `while_asked` is told while the first answer is on its way."""

    def __init__(self, *events: TaskEvent) -> None:
        self.events_ = list(events)
        self.followers = Followers()
        self.while_asked: list[TaskEvent] = []
        self.asked = 0
        self.known = True
        self.status = "completed"

    async def events(self, task_id: str, after: EventId | None) -> list[TaskEvent] | None:
        self.asked += 1
        found = [event for event in self.events_ if after is None or event.id > after]
        while self.while_asked:
            self.happens(self.while_asked.pop(0))
        return found if self.known else None

    async def state(self, task_id: str) -> dict[str, Any] | None:
        return {"task_id": "t", "status": self.status} if self.status else None

    async def entry(self, task_id: str) -> None:
        return None

    def happens(self, event: TaskEvent, told: bool = True) -> None:
        self.events_.append(event)
        if told:
            self.followers.note(b"t", encode_event(event))

    def follow(self, after: str = "", look_s: float = 10.0) -> AsyncGenerator[Told | None, None]:
        return follow("t", after, cast(Tasks, self), self.followers, look_s)


async def heard(events: AsyncIterator[Told | None]) -> list[Told]:
    return [event async for event in events if event is not None]


def words(events: list[Told]) -> str:
    return "".join(event.data["text"] for event in events if event.event == "token")


async def test_what_happens_while_the_owner_is_asked_is_told_once() -> None:
    owner = Owner(accepted(1), started(2), text(3, 0))
    owner.while_asked = [text(4, 1), completed(5)]
    events = await heard(owner.follow())
    assert [event.id for event in events] == [f"1-{n}-0" for n in (1, 2, 3, 4, 5)]
    assert [event.event for event in events] == ["status", "status", "token", "token", "result"]
    assert owner.asked == 1


async def test_a_gap_is_asked_after() -> None:
    owner = Owner(accepted(1), started(2))
    async with aclosing(owner.follow()) as following:
        assert [(await anext(following)) is None for _ in range(3)] == [False, False, True]
        owner.happens(text(3, 0), told=False)
        owner.happens(text(4, 1))
        owner.happens(completed(5))
        assert words(await heard(following)) == "3 4 "


async def test_silence_is_asked_after_and_a_lost_attempt_discarded() -> None:
    owner = Owner(accepted(1), started(2), text(3, 0))
    async with aclosing(owner.follow("1-3-0", 0.02)) as following:
        assert await anext(following) is None
        for event in (discarded(4), started(5, 2), text(6, 0), completed(7)):
            owner.happens(event, told=False)
        events = await heard(following)
    assert events[0].data["discard"] is True and events[0].data["error_type"] == "lost"
    assert words(events) == "6 " and events[-1].final


async def test_a_follower_that_is_far_behind_asks_the_owner() -> None:
    owner = Owner(accepted(1), started(2))
    async with aclosing(owner.follow()) as following:
        for _ in range(3):
            await anext(following)
        for block in range(600):
            owner.happens(text(3 + block, block))
        owner.happens(completed(1_000))
        assert words(await heard(following)).split() == [str(3 + block) for block in range(600)]
    assert owner.asked == 2


async def test_segments_are_not_told_word_by_word() -> None:
    owner = Owner(accepted(1), text(2, 0, segment=0), started(3), text(4, 0), completed(5))
    assert words(await heard(owner.follow())) == "4 "


async def test_a_cancelled_task_ends_its_stream() -> None:
    owner = Owner(accepted(1), TaskCancelled(**_where(2), figures=Figures()))
    owner.status = "cancelled"
    events = await heard(owner.follow())
    assert (events[-1].event, events[-1].data["status"], events[-1].final) == ("status", "cancelled", True)


async def test_of_a_forgotten_task_the_end_is_told() -> None:
    owner = Owner()
    owner.known = False
    assert [(event.id, event.event) for event in await heard(owner.follow())] == [(ARCHIVED_ID, "result")]
    owner.status = ""
    with pytest.raises(NoTask):
        await heard(owner.follow())


async def test_a_gateway_that_stops_ends_its_streams() -> None:
    owner = Owner(accepted(1))
    async with aclosing(owner.follow()) as following:
        await anext(following)
        await anext(following)
        owner.followers.stop()
        assert await heard(following) == []
