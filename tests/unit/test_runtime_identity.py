"""The identity that a flush commits under is never older than the flush, also when somebody else's question failed."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from streams.runtime.admin import IdentityGuard, TopicIdentity


class _Topics:
    """Answers in order; a question waits until it is let through."""

    def __init__(self, *answers: TopicIdentity | Exception) -> None:
        self.answers = list(answers)
        self.asked = 0
        self.gate = asyncio.Semaphore(0)

    async def identify(self, topic: str) -> TopicIdentity:
        self.asked += 1
        await self.gate.acquire()
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer


OLD, NEW = TopicIdentity("old", 4), TopicIdentity("new", 4)


async def _settle() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


def _run(scenario: Any) -> None:
    asyncio.run(asyncio.wait_for(scenario(), 10))


def test_questions_that_wait_together_share_one_answer() -> None:
    async def scenario() -> None:
        topics: Any = _Topics(OLD, NEW)
        guard = IdentityGuard(topics, "t")
        first, *others = [asyncio.create_task(guard.current()) for _ in range(5)]
        await _settle()
        topics.gate.release()
        topics.gate.release()
        assert await first == OLD
        assert await asyncio.gather(*others) == [NEW] * 4
        assert topics.asked == 2

    _run(scenario)


@pytest.mark.parametrize("given_up", [False, True])
def test_a_question_without_an_answer_is_asked_again_by_those_who_waited(given_up: bool) -> None:
    async def scenario() -> None:
        topics: Any = _Topics(OLD, *([] if given_up else [TimeoutError()]), NEW)
        guard = IdentityGuard(topics, "t")
        earlier, failing, flush = [asyncio.create_task(guard.current()) for _ in range(3)]
        await _settle()
        topics.gate.release()
        await _settle()
        assert earlier.result() == OLD
        if given_up:
            failing.cancel()
        await _settle()
        topics.gate.release()
        topics.gate.release()
        assert await flush == NEW
        assert isinstance((await asyncio.gather(failing, return_exceptions=True))[0], BaseException)

    _run(scenario)
