"""A gateway does a task itself: the same prompts, calls, limits and retries as a worker's, outside of any log."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from typing import Protocol

import msgspec
import structlog

from streams.ai.fold import MERGE_QUESTION_CHARS
from streams.ai.model_port import Asked, Delta, Model, ModelCall, ModelRefused, ModelRetryable, Part, Prompts
from topics.ai import MAX_ERROR_CHARS, MAX_OUTCOME_BYTES, Kind, Outcome, Status, Submit, Usage

#: Calls a minute are counted over so much, seconds.
_RATE_WINDOW_S = 60.0

log = structlog.get_logger(__name__)


@dataclass(frozen=True, kw_only=True)
class DirectRules:
    """What bounds the work of one gateway. `models` gives each model's calls at once and a minute (0: no limit); `split`
    cuts a question into its segments; `pause_s` is the pause after a failed attempt, from 0, jitter included. An outcome
    is a record of at most `record_bytes_max`."""

    models: Mapping[str, tuple[int, int]]
    split: Callable[[str], Sequence[str]]
    opening_chars: int = MERGE_QUESTION_CHARS
    deadline_s: float = 300.0
    retries_max: int = 2
    record_bytes_max: int = 1 << 20
    pause_s: Callable[[int], float] = lambda failures: min(30.0, 2.0**failures)


class Listener(Protocol):
    """Hears how the work on a task goes. Segments are not told of, only the call whose answer is the task's."""

    def began(self, attempt: int) -> None:
        """A call begins."""

    def wrote(self, delta: Delta) -> None:
        """It says more."""

    def discarded(self, error_type: str, retry_after_s: float) -> None:
        """It came to nothing; another one follows."""


class _Failed(Exception):
    def __init__(self, error_type: str, message: str) -> None:
        super().__init__(message)
        self.error_type = error_type


class DirectWork:
    """Does tasks, as many at once as their models allow."""

    def __init__(self, model: Model, prompts: Prompts, rules: DirectRules) -> None:
        self._model = model
        self._prompts = prompts
        self._rules = rules
        self._gates = {name: _Gate(*limits) for name, limits in rules.models.items()}

    def room(self) -> int:
        """How many calls all models together take at once."""
        return sum(gate.limit for gate in self._gates.values())

    async def do(self, submit: Submit, attempts_before: int, listener: Listener) -> Outcome:
        """The task's outcome, completed or failed; never raises. `attempts_before` are those that a death of the gateway
        lost."""
        work = _Work(submit, attempts_before)
        status, error_type, error, text = Status.COMPLETED, None, "", ""
        try:
            async with asyncio.timeout(None) as limit:
                work.limit = limit
                text = await self._answer(work, listener)
        except _Failed as failed:
            status, error_type, error = Status.FAILED, failed.error_type, str(failed)
        except TimeoutError:
            status, error_type = Status.FAILED, "deadline_exceeded"
            error = f"there was no answer within {self._rules.deadline_s:g} s"
        except Exception as bug:
            # Of one task's making, as far as can be told: it is not to be begun again and again.
            log.exception("direct_work_failed", task_id=submit.task_id)
            status, error_type, error = Status.FAILED, "internal_error", f"{type(bug).__name__}: {bug}"
        outcome = Outcome(
            task_id=submit.task_id,
            status=status,
            result=text,
            reasoning="".join(work.reasoning) if status is Status.COMPLETED else "",
            error_type=error_type,
            error=clean(error[:MAX_ERROR_CHARS]),
            attempts=work.attempts,
            usage=work.usage,
            model=work.model or None,
            started_ms=work.started_ms or _now_ms(),
            finished_ms=_now_ms(),
            submit=submit,
        )
        return outcome if len(msgspec.json.encode(outcome)) <= self._rules.record_bytes_max else _too_large(outcome)

    async def _answer(self, work: _Work, listener: Listener) -> str:
        submit = work.submit
        kind = self._prompts.task_types.get(submit.task_type)
        if kind is None:
            raise _Failed("unknown_type", f"there is no task type {submit.task_type}")
        work.model = submit.model or kind.model
        if work.model not in self._gates:
            raise _Failed("model_not_allowed", f"model {work.model} is none of {', '.join(self._gates)}")
        question = submit.question
        segments = self._rules.split(question)
        if len(segments) <= 1:
            return await self._call(work, Part.WHOLE, (question,), listener)
        try:
            async with asyncio.TaskGroup() as group:
                calls = [
                    group.create_task(self._call(work, Part.SEGMENT, (segment,), None, number, len(segments)))
                    for number, segment in enumerate(segments, 1)
                ]
        except* _Failed as failures:
            raise _first(failures) from None
        texts = (question[: self._rules.opening_chars], *(call.result() for call in calls))
        return await self._call(work, Part.MERGE, texts, listener, of=len(segments))

    async def _call(
        self,
        work: _Work,
        part: Part,
        texts: tuple[str, ...],
        listener: Listener | None,
        number: int = 1,
        of: int = 1,
    ) -> str:
        """One call through all its attempts; its answer. Raises _Failed."""
        submit, rules = work.submit, self._rules
        asked = Asked(
            task_type=submit.task_type, language=submit.language, part=part, texts=texts, number=number, of=of
        )
        messages = self._prompts.messages(asked)
        attempt = 0
        while True:
            attempt += 1
            work.attempts = max(work.attempts, work.attempts_before + attempt)
            try:
                async with self._gates[work.model].turn():
                    left_s = work.left_s(rules.deadline_s)
                    name = f"{submit.task_id}/{part}-{number}/{attempt}"
                    call = ModelCall(model=work.model, messages=messages, deadline_s=left_s, name=name)
                    return await self._attempt(work, call, attempt, listener)
            except ModelRefused as refused:
                raise _Failed(refused.error_type, str(refused)) from None
            except ModelRetryable as error:
                pause_s = max(error.retry_after_s or 0.0, rules.pause_s(attempt - 1))
                if attempt > rules.retries_max or pause_s >= work.left_s(rules.deadline_s):
                    raise _Failed(error.error_type, str(error)) from None
                if listener is not None:
                    listener.discarded(error.error_type, pause_s)
                await asyncio.sleep(pause_s)

    async def _attempt(self, work: _Work, call: ModelCall, attempt: int, listener: Listener | None) -> str:
        answer: list[str] = []
        reasoning: list[str] = []
        size = 0
        if listener is not None:
            listener.began(work.attempts_before + attempt)
        async with aclosing(self._model.stream(call)) as pieces:  # type: ignore[type-var]
            async for piece in pieces:
                if isinstance(piece, Usage):
                    work.add(piece)
                    continue
                piece = piece._replace(text=clean(piece.text))
                size += len(piece.text.encode())
                if size > MAX_OUTCOME_BYTES:
                    raise _Failed("answer_too_large", f"the answer has more than {MAX_OUTCOME_BYTES} bytes")
                (answer if piece.kind is Kind.ANSWER else reasoning).append(piece.text)
                if listener is not None:
                    listener.wrote(piece)
        if not any(answer):
            raise ModelRetryable("empty_answer", "the model ended without an answer")
        if listener is not None:
            work.reasoning = reasoning
        return "".join(answer)


class _Work:
    """What adds up over a task's calls."""

    def __init__(self, submit: Submit, attempts_before: int) -> None:
        self.submit = submit
        self.attempts_before = attempts_before
        self.attempts = attempts_before
        self.usage = Usage()
        self.reasoning: list[str] = []
        self.model = ""
        self.started_ms = 0
        self.limit: asyncio.Timeout | None = None

    def left_s(self, deadline_s: float) -> float:
        """What is left of its time, which begins with its first call: what waited for a slot before took nothing of it."""
        assert self.limit is not None
        now = asyncio.get_running_loop().time()
        if self.limit.when() is None:
            self.limit.reschedule(now + deadline_s)
            self.started_ms = _now_ms()
        ends = self.limit.when()
        assert ends is not None
        return max(0.001, ends - now)

    def add(self, usage: Usage) -> None:
        """Tokens of one more call."""
        self.usage = Usage(
            self.usage.prompt_tokens + usage.prompt_tokens, self.usage.completion_tokens + usage.completion_tokens
        )


class _Gate:
    """Calls of one model: so many at once, and so many a minute."""

    def __init__(self, limit: int, per_minute: int) -> None:
        self.limit = limit
        self._per_minute = per_minute
        self._slots = asyncio.Semaphore(limit)
        self._begun: deque[float] = deque()

    @asynccontextmanager
    async def turn(self) -> AsyncIterator[None]:
        async with self._slots:
            while (wait_s := self._wait_s()) > 0:  # noqa: ASYNC110
                await asyncio.sleep(wait_s)
            if self._per_minute:
                self._begun.append(time.monotonic())
            yield

    def _wait_s(self) -> float:
        earliest = time.monotonic() - _RATE_WINDOW_S
        while self._begun and self._begun[0] <= earliest:
            self._begun.popleft()
        if not self._per_minute or len(self._begun) < self._per_minute:
            return 0.0
        return self._begun[0] - earliest


def clean(text: str) -> str:
    """Text as UTF-8 can hold it: half of a surrogate pair, which a model may send, is no character."""
    return text.encode("utf-8", "replace").decode()


def _too_large(outcome: Outcome) -> Outcome:
    """An outcome that no record holds: control characters take six bytes of JSON each."""
    error = "the answer takes more room as JSON than a record has"
    return msgspec.structs.replace(
        outcome, status=Status.FAILED, result="", reasoning="", error_type="answer_too_large", error=error
    )


def _first(failures: BaseExceptionGroup[BaseException]) -> BaseException:
    found: BaseException = failures
    while isinstance(found, BaseExceptionGroup):
        found = found.exceptions[0]
    return found


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
