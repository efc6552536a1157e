"""What happened to AI tasks: the events of `ai.results.v1`."""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta

from topics.ai import Kind
from topics.event_ids import EventId
from topics.malformed import Malformed, decoded

_Count = Annotated[int, Meta(ge=0)]

#: Bytes of JSON of an answer that its event carries; a longer one is asked of the task's owner.
MAX_RESULT_BYTES = 512 << 10


class Figures(msgspec.Struct, frozen=True):
    """What a task has come to. `attempts` is the most that one of its calls took, lost ones among them; `calls` are all
    calls of the model, `lost_calls` those whose owner died; `cost_micros` is millionths of the prices' currency."""

    attempts: _Count = 0
    calls: _Count = 0
    retries: _Count = 0
    lost_calls: _Count = 0
    prompt_tokens: _Count = 0
    completion_tokens: _Count = 0
    cost_micros: _Count = 0


class _Event(msgspec.Struct, frozen=True, tag_field="type", kw_only=True):
    """`at_ms` is the partition's clock; `epoch`, `source_offset` and `number` make the id. The key is the task's id."""

    task_id: str
    user: str
    at_ms: _Count
    source_partition: _Count
    epoch: _Count
    source_offset: _Count
    number: _Count

    @property
    def id(self) -> EventId:
        """What orders and names it."""
        return EventId(self.epoch, self.source_offset, self.number)


class TaskAccepted(_Event, frozen=True, tag="task_accepted", kw_only=True):
    """The task is recorded: pending. `segments` is 1, or into how many its question is split."""

    task_type: str
    language: str
    model: str
    segments: _Count
    submitted_ms: _Count


class AttemptStarted(_Event, frozen=True, tag="attempt_started", kw_only=True):
    """A call of the model begins: processing. `segment` is None for the call whose answer is the task's; it has ended one
    way or another by `lease_ms`."""

    segment: _Count | None
    attempt: _Count
    lease_ms: _Count


class TextWritten(_Event, frozen=True, tag="text_written", kw_only=True):
    """A call has said more: its blocks, in their order from 0, are its text of either kind."""

    segment: _Count | None
    attempt: _Count
    block: _Count
    kind: Kind
    text: str


class AttemptDiscarded(_Event, frozen=True, tag="attempt_discarded", kw_only=True):
    """A call has come to nothing: what it wrote is void, and clients drop it. Another attempt follows after
    `retry_after_ms`. `error_type` is `lost` when its owner died."""

    segment: _Count | None
    attempt: _Count
    error_type: str
    retry_after_ms: _Count


class SegmentCompleted(_Event, frozen=True, tag="segment_completed", kw_only=True):
    """One of a long question's segments has its answer."""

    segment: _Count
    segments: _Count


class TaskCompleted(_Event, frozen=True, tag="task_completed", kw_only=True):
    """The task has its answer. `result` is None when it is too long for an event: ask for the task then."""

    result: str | None
    figures: Figures


class TaskFailed(_Event, frozen=True, tag="task_failed", kw_only=True):
    """The task has none and will get none. `error_type` is a label of few values."""

    error_type: str
    error: str
    figures: Figures


class TaskCancelled(_Event, frozen=True, tag="task_cancelled", kw_only=True):
    """Somebody wanted no answer any more."""

    figures: Figures


TaskEvent = (
    TaskAccepted
    | AttemptStarted
    | TextWritten
    | AttemptDiscarded
    | SegmentCompleted
    | TaskCompleted
    | TaskFailed
    | TaskCancelled
)
#: After one of these nothing follows of its task.
FINAL_EVENTS = (TaskCompleted, TaskFailed, TaskCancelled)

_events: msgspec.json.Decoder[TaskEvent] = msgspec.json.Decoder(TaskEvent)


def encode_event(event: TaskEvent) -> bytes:
    """An event as the topic's JSON."""
    return msgspec.json.encode(event)


def decode_event(value: bytes | None) -> TaskEvent | Malformed:
    """One record's value. Total: any bytes give an event or a `Malformed`."""
    return decoded(_events, value)
