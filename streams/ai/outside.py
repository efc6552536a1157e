"""What the stream does in the world: calls models and tells webhooks. Nothing of it decides anything before the log has it.

What a call says is reported as blocks, each of what came within a moment, and how it ended as a record after them. The
pause before a retry is drawn here and enters as part of that record. A process that gave its partition up reports nothing.
"""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any

import structlog

from streams.ai.effects import Abandon, CallModel, Effect, SendWebhook, Wake
from streams.ai.fold import AiFold
from streams.ai.model_port import (
    Delta,
    Model,
    ModelCall,
    ModelRefused,
    ModelRetryable,
    Prompts,
    WebhookRefused,
    Webhooks,
)
from streams.runtime.outside import Seat
from streams.runtime.reporting import Reporting
from topics import ai
from topics.ai import Kind, TaskRecord, Usage

log = structlog.get_logger(__name__)


@dataclass(frozen=True, kw_only=True)
class OutsideLimits:
    """A block holds what came within `block_s`, or `block_bytes`. `backoff_s` gives the pause after a failed attempt, from
    0, jitter included; a webhook is tried `webhook_attempts` times."""

    block_s: float = 0.2
    block_bytes: int = 8 << 10
    webhook_attempts: int = 6
    backoff_s: Callable[[int], float] = lambda failures: min(30.0, 2.0**failures)


@dataclass(frozen=True)
class World:
    """What all partitions of a worker share. `body` is what a webhook is told of a task."""

    model: Model
    prompts: Prompts
    webhooks: Webhooks
    limits: OutsideLimits
    body: Callable[[dict[str, Any]], bytes]


@dataclass
class _Blocks:
    """Gathers what a call says into blocks and reports them."""

    effect: CallModel
    limits: OutsideLimits
    report: Callable[[TaskRecord], None]
    count: int = 0
    said_bytes: int = 0
    answered: bool = False
    _kind: Kind = Kind.ANSWER
    _texts: list[str] = field(default_factory=list)
    _size: int = 0
    _timer: asyncio.TimerHandle | None = None

    def add(self, delta: Delta) -> None:
        """A piece of text has come. Raises ModelRefused past the limit of an answer."""
        if not delta.text:
            return
        if delta.kind is not self._kind:
            self.flush()
        self._kind = delta.kind
        self.answered |= delta.kind is Kind.ANSWER
        for at in range(0, len(delta.text), ai.MAX_BLOCK_BYTES // 8):
            text = delta.text[at : at + ai.MAX_BLOCK_BYTES // 8].encode("utf-8", "replace").decode()
            self._texts.append(text)
            self._size += len(text.encode())
            if self._size >= self.limits.block_bytes:
                self.flush()
        if self.said_bytes + self._size > ai.MAX_ANSWER_BYTES:
            raise ModelRefused("answer_too_large", f"the answer has more than {ai.MAX_ANSWER_BYTES} bytes")
        if self._texts and self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(self.limits.block_s, self.flush)

    def flush(self) -> None:
        """Report what has been gathered."""
        self.stop()
        if not self._texts:
            return
        effect, text = self.effect, "".join(self._texts)
        place = (effect.task_id, effect.call, effect.term, effect.attempt)
        self.report(ai.Block(*place, self.count, self._kind, text))
        self.count, self.said_bytes = self.count + 1, self.said_bytes + self._size
        self._texts, self._size = [], 0

    def stop(self) -> None:
        """Report nothing by itself any more."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


class AiOutside(Reporting):
    """Implements `streams.runtime.outside.Outside` for one partition; says at once that it has a new owner."""

    def __init__(self, seat: Seat, world: World, fold: AiFold) -> None:
        super().__init__(seat, fold.state.rules.source)
        self._world = world
        self._fold = fold
        self._calls: dict[tuple[str, int], asyncio.Task[None]] = {}
        self._slots: dict[str, asyncio.Semaphore] = defaultdict(lambda: asyncio.Semaphore(1))
        for model in fold.state.rules.models:
            self._slots[model] = asyncio.Semaphore(fold.state.rules.slots(model))
        fold.take_seat(seat.term)
        self._say(ai.Owner(seat.term))

    def begin(self, effects: Sequence[Effect]) -> None:
        """See `Outside`."""
        for effect in effects:
            match effect:
                case CallModel():
                    self._start(effect)
                case Abandon():
                    self._abandon(effect)
                case SendWebhook():
                    self._spawn(self._webhook(effect), f"webhook of {effect.task_id}")
                case Wake():
                    self._report_after(effect.after_ms, ai.encode(ai.Idle()))

    # -- calls --------------------------------------------------------------------------------------------------

    def _start(self, effect: CallModel) -> None:
        self._abandon(Abandon(effect.task_id, effect.call))
        key = (effect.task_id, effect.call)
        task = self._spawn(self._call(effect), f"call {effect.task_id}/{effect.call}")
        self._calls[key] = task
        task.add_done_callback(lambda done: self._calls.pop(key) if self._calls.get(key) is done else None)

    def _abandon(self, effect: Abandon) -> None:
        for (task_id, call), task in list(self._calls.items()):
            if task_id == effect.task_id and effect.call in (None, call):
                task.cancel()

    async def _call(self, effect: CallModel) -> None:
        began = time.monotonic()
        ends = began + effect.left_ms / 1000
        place = (effect.task_id, effect.call, effect.term, effect.attempt)
        blocks = _Blocks(effect, self._world.limits, self._say)
        usage = Usage()
        streamed = 0
        failed: tuple[str, str, int | None] | None = None
        try:
            async with asyncio.timeout(effect.left_ms / 1000), self._slots[effect.model]:
                asked = self._fold.asked(effect)
                if asked is None:
                    return
                began = time.monotonic()
                call = ModelCall(
                    model=effect.model,
                    messages=self._world.prompts.messages(asked),
                    deadline_s=max(0.001, ends - began),
                    name=f"{effect.task_id}/{effect.call}/{effect.attempt}",
                )
                self._seat.reach("call.before")
                async with aclosing(self._world.model.stream(call)) as pieces:  # type: ignore[type-var]
                    async for piece in pieces:
                        if isinstance(piece, Usage):
                            usage = piece
                        else:
                            streamed += 1
                            blocks.add(piece)
                            self._seat.reach("call.during")
                if not blocks.answered:
                    raise ModelRetryable("empty_answer", "the model ended without an answer")
                blocks.flush()
        except ModelRetryable as error:
            failed = (error.error_type, str(error), self._pause_ms(effect, error))
        except ModelRefused as error:
            failed = (error.error_type, str(error), None)
        except TimeoutError:
            failed = ("deadline_exceeded", "the task's deadline passed during the call", None)
        except asyncio.CancelledError:
            raise
        except Exception as error:
            # Of one task's making, as far as can be told: it is not to take the partition with it.
            log.error("a call failed unexpectedly", task_id=effect.task_id, error=repr(error), exc_info=error)
            failed = ("internal_error", f"{type(error).__name__}: {error}", self._pause_ms(effect, None))
        finally:
            blocks.stop()
        self._seat.reach("call.after")
        duration_ms = int((time.monotonic() - began) * 1000)
        if failed is None:
            self._say(ai.Answered(*place, blocks.count, streamed > 1, duration_ms, usage))
        else:
            error_type, error_text, pause_ms = failed
            text = error_text[: ai.MAX_ERROR_CHARS].encode("utf-8", "replace").decode()
            self._say(ai.CallFailed(*place, error_type, text, pause_ms, duration_ms, usage))

    def _pause_ms(self, effect: CallModel, error: ModelRetryable | None) -> int:
        """How long to wait before the next attempt: not less than the server asked for."""
        asked_s = (error.retry_after_s if error else None) or 0.0
        return int(max(asked_s, self._world.limits.backoff_s(effect.failures)) * 1000)

    # -- webhooks --------------------------------------------------------------------------------------

    async def _webhook(self, effect: SendWebhook) -> None:
        task = self._fold.task(effect.task_id)
        if task is None or task.submit.webhook_url is None or not self._fold.wanted(effect):
            return
        body = self._world.body(self._fold.described(task))
        error = ""
        for attempt in range(1, self._world.limits.webhook_attempts + 1):
            try:
                await self._world.webhooks.send(task.submit.webhook_url, body, task.id)
            except WebhookRefused as refused:
                self._webhook_over(task.id, False, attempt, str(refused))
                return
            except (OSError, TimeoutError) as failed:
                error = str(failed) or type(failed).__name__
            else:
                self._webhook_over(task.id, True, attempt, "")
                return
            if attempt < self._world.limits.webhook_attempts:
                await asyncio.sleep(self._world.limits.backoff_s(attempt - 1))
        self._webhook_over(task.id, False, self._world.limits.webhook_attempts, error)

    def _webhook_over(self, task_id: str, delivered: bool, attempts: int, error: str) -> None:
        if not delivered:
            log.info("a webhook was not delivered", task_id=task_id, attempts=attempts, error=error[:300])
        self._say(ai.WebhookSent(task_id, delivered, attempts, error[: ai.MAX_ERROR_CHARS]))

    def _say(self, record: TaskRecord) -> None:
        self._report(ai.encode(record))
