"""What the AI stream does in the world, against a scripted model: blocks, ends, errors, cancels, webhooks and time."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field, replace
from typing import Any

import msgspec
import pytest

from streams.ai.effects import Abandon, CallModel, SendWebhook, Wake
from streams.ai.model_port import (
    Asked,
    Delta,
    Message,
    ModelCall,
    ModelRefused,
    ModelRetryable,
    TaskType,
    WebhookRefused,
)
from streams.ai.outside import AiOutside, OutsideLimits
from streams.ai.outside import World as Outer
from streams.ai.rules import ModelLimits
from streams.runtime.outside import Seat
from tests.aifold import MODEL, RULES, World, submit
from tests.waiting import until
from topics import ai
from topics.ai import Answered, Block, CallFailed, Idle, Kind, Owner, Usage, WebhookSent
from topics.malformed import Malformed

Script = list[Any]  # deltas, usages, seconds to wait, exceptions
DEADLINE_S = 10.0


@dataclass
class Scripted:
    """A model that says what it is told to, and webhooks that fail as they are told to."""

    script: Script
    calls: list[ModelCall] = field(default_factory=list)
    at_once: int = 0
    most_at_once: int = 0
    closed: int = 0
    webhooks: list[Exception | None] = field(default_factory=list)
    sent: list[tuple[str, Any]] = field(default_factory=list)

    async def stream(self, call: ModelCall) -> AsyncIterator[Delta | Usage]:
        """See `Model`."""
        self.calls.append(call)
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        try:
            for step in self.script:
                if isinstance(step, Exception):
                    raise step
                if isinstance(step, float):
                    await asyncio.sleep(step)
                else:
                    yield step
        finally:
            self.at_once -= 1
            self.closed += 1

    @property
    def task_types(self) -> dict[str, TaskType]:
        """See `Prompts`."""
        return dict(RULES.task_types)

    def messages(self, asked: Asked) -> tuple[Message, ...]:
        """See `Prompts`."""
        return (Message("user", asked.texts[0]),)

    async def send(self, url: str, body: bytes, task_id: str) -> None:
        """See `Webhooks`."""
        self.sent.append((url, msgspec.json.decode(body)))
        error = self.webhooks.pop(0) if self.webhooks else None
        if error is not None:
            raise error


@dataclass
class Bench:
    """An outside on a fold, and what it has reported."""

    world: World
    scripted: Scripted
    limits: OutsideLimits
    reported: list[ai.TaskRecord] = field(default_factory=list)
    failures: list[BaseException] = field(default_factory=list)

    def __post_init__(self) -> None:
        def report(emits: Any) -> None:
            for emit in emits:
                record = ai.decode(emit.key, emit.value, emit.headers)
                assert not isinstance(record, Malformed), record
                self.reported.append(record)

        term = self.world.term
        outer = Outer(self.scripted, self.scripted, self.scripted, self.limits, msgspec.json.encode)
        self.outside = AiOutside(Seat(0, term, report, self.failures.append), outer, self.world.fold)
        assert self.reported == [Owner(term)], "it says at once whose the partition is"
        self.reported.clear()

    async def until(self, true: Callable[[], bool]) -> None:
        """Wait for it."""
        await until(true, DEADLINE_S)

    async def done(self) -> list[ai.TaskRecord]:
        """What was reported once nothing is under way."""
        await self.until(lambda: self.outside.under_way == 0)
        assert self.failures == []
        return self.reported


def _bench(script: Script, tasks: str = "a", block_s: float = 0.05, **other: Any) -> Bench:
    world = World(replace(RULES, models={MODEL: ModelLimits(concurrency=other.pop("concurrency", 2))}))
    lost, backoff_s = other.pop("lost", 0), other.pop("backoff_s", lambda failures: 0.01)
    for task_id in tasks:
        world.say(submit(task_id, **other))
    world.settle_log()
    for _ in range(lost):
        world.start()
        world.settle_log()
    limits = OutsideLimits(block_s=block_s, block_bytes=100, webhook_attempts=3, backoff_s=backoff_s)
    return Bench(world, Scripted(script), limits)


def _begin(bench: Bench) -> None:
    bench.outside.begin([effect for effect in bench.world.inflight if isinstance(effect, CallModel)])


def say(text: str, kind: Kind = Kind.ANSWER) -> Delta:
    """A piece of text."""
    return Delta(kind, text)


async def test_what_comes_within_a_moment_is_one_block() -> None:
    script = [say("hm", Kind.REASONING), say("Yes"), say(", "), 0.2, say("no."), Usage(7, 3)]
    bench = _bench(script)
    _begin(bench)
    *blocks, end = await bench.done()
    assert [(b.block, b.kind, b.text) for b in blocks if isinstance(b, Block)] == [
        (0, Kind.REASONING, "hm"),
        (1, Kind.ANSWER, "Yes, "),
        (2, Kind.ANSWER, "no."),
    ]
    assert isinstance(end, Answered)
    assert (end.blocks, end.streamed, end.usage, end.term, end.attempt) == (3, True, Usage(7, 3), 1, 1)
    (call,) = bench.scripted.calls
    assert call.messages == (Message("user", "what of a?"),) and 0 < call.deadline_s <= RULES.deadline_ms / 1000


async def test_a_long_delta_is_cut_into_blocks_that_a_record_takes() -> None:
    bench = _bench([say("x" * 3 * ai.MAX_BLOCK_BYTES), say("half \ud800 of a pair")])
    _begin(bench)
    *blocks, end = await bench.done()
    texts = [block.text for block in blocks if isinstance(block, Block)]
    assert max(map(len, texts)) <= ai.MAX_BLOCK_BYTES
    assert "".join(texts) == "x" * 3 * ai.MAX_BLOCK_BYTES + "half ? of a pair"
    assert isinstance(end, Answered) and end.blocks == len(texts)


@pytest.mark.parametrize(
    ("error", "error_type", "pause_ms"),
    [
        (ModelRetryable("rate_limited", "slow down", 3.0), "rate_limited", 3_000),
        (ModelRetryable("server_error", "oh"), "server_error", 10),
        (ModelRefused("bad_request", "no"), "bad_request", None),
        (ValueError("a fault of ours"), "internal_error", 10),
    ],
)
async def test_an_error_ends_the_call_after_what_it_has_said(
    error: Exception, error_type: str, pause_ms: int | None
) -> None:
    bench = _bench([say("Well"), Usage(5, 1), error])
    _begin(bench)
    records = await bench.done()
    end = records[-1]
    assert isinstance(end, CallFailed)
    assert (end.error_type, end.retry_after_ms, end.usage) == (error_type, pause_ms, Usage(5, 1))
    assert "a fault" not in end.error or "ValueError" in end.error


async def test_a_call_that_was_lost_makes_no_pause_longer() -> None:
    bench = _bench([ModelRetryable("server_error", "oh")], lost=5, backoff_s=lambda failures: 10.0 * (failures + 1))
    _begin(bench)
    (end,) = await bench.done()
    assert isinstance(end, CallFailed) and end.attempt == 6
    assert end.retry_after_ms == 10_000


@pytest.mark.parametrize("script", [[], [say("")], [say("thinking", Kind.REASONING)]])
async def test_no_answer_is_no_answer(script: Script) -> None:
    bench = _bench(script)
    _begin(bench)
    end = (await bench.done())[-1]
    assert isinstance(end, CallFailed) and (end.error_type, end.retry_after_ms) == ("empty_answer", 10)


async def test_an_answer_without_end_is_refused() -> None:
    bench = _bench([say("x" * (1 << 20))] * 5)
    _begin(bench)
    end = (await bench.done())[-1]
    assert isinstance(end, CallFailed) and (end.error_type, end.retry_after_ms) == ("answer_too_large", None)


async def test_a_call_ends_at_the_tasks_deadline() -> None:
    bench = _bench([say("Wait"), 60.0])
    effects = [replace(e, left_ms=100) for e in bench.world.inflight if isinstance(e, CallModel)]
    bench.outside.begin(effects)
    end = (await bench.done())[-1]
    assert isinstance(end, CallFailed) and (end.error_type, end.retry_after_ms) == ("deadline_exceeded", None)
    assert bench.scripted.closed == 1, "the connection is not left open"


async def test_what_nobody_wants_is_ended_and_says_nothing_more() -> None:
    bench = _bench([say("Wait"), 60.0], tasks="ab")
    _begin(bench)
    await bench.until(lambda: len(bench.scripted.calls) == 2 and len(bench.reported) == 2)
    bench.outside.begin([Abandon("a")])
    await bench.until(lambda: bench.outside.under_way == 1)
    assert bench.scripted.closed == 1
    bench.outside.close()
    await bench.until(lambda: bench.scripted.closed == 2)
    assert len(bench.reported) == 2 and bench.failures == []


async def test_a_call_that_is_over_before_it_begins_is_not_made() -> None:
    bench = _bench([say("Yes")])
    effects = list(bench.world.inflight)
    bench.world.say(ai.Cancel("a"))
    bench.world.settle_log()
    bench.outside.begin(effects)
    assert await bench.done() == [] and bench.scripted.calls == []


async def test_calls_granted_ahead_wait_for_a_slot() -> None:
    bench = _bench([0.02, say("Yes")], tasks="abcdef", concurrency=6)
    effects = [e for e in bench.world.inflight if isinstance(e, CallModel)]
    assert len(effects) == 6
    bench.outside._slots[MODEL] = asyncio.Semaphore(2)
    bench.outside.begin(effects)
    records = await bench.done()
    assert sum(isinstance(record, Answered) for record in records) == 6
    assert bench.scripted.most_at_once == 2


def _over(bench: Bench) -> None:
    """The task's end is folded."""
    bench.world.say(Answered("a", 0, 1, 1, 0, True, 1, Usage()))
    bench.world.settle_log()


@pytest.mark.parametrize(
    ("failures", "sent", "delivered"),
    [
        ([], 1, True),
        ([OSError("away"), TimeoutError()], 3, True),
        ([OSError("away")] * 9, 3, False),
        ([WebhookRefused("a private address")], 1, False),
    ],
)
async def test_a_webhook_is_told_until_it_takes_it(failures: Script, sent: int, delivered: bool) -> None:
    bench = _bench([], webhook_url="https://example.com/hook")
    _over(bench)
    bench.scripted.webhooks = list(failures)
    bench.outside.begin([SendWebhook("a")])
    (end,) = await bench.done()
    assert isinstance(end, WebhookSent) and (end.delivered, end.attempts) == (delivered, sent)
    assert len(bench.scripted.sent) == sent
    url, body = bench.scripted.sent[0]
    assert (url, body["task_id"], body["status"]) == ("https://example.com/hook", "a", "completed")


async def test_the_latest_wish_to_be_woken_is_the_one_that_counts() -> None:
    bench = _bench([])
    bench.outside.begin([Wake(60_000), Wake(20)])
    await bench.until(lambda: bench.reported == [Idle()])
    bench.outside.begin([Wake(20), Wake(60_000)])
    await asyncio.sleep(0.1)
    assert bench.reported == [Idle()]
    bench.outside.close()
