"""The records of `ai.tasks.v1`: their strict decoding, and the one place that says what a valid task is.

The life of a task, all of it in the order of one partition:

- `submit` makes it **pending**. It waits for a slot among its user's tasks, alone or in a batch.
- With its first call of a model it is **processing**. A long question is several calls, one a segment, and a last one that
  merges their answers. What a call says comes as `block` records, how it ended as `answered` or `call_failed`; after an
  error that may pass, or when its owner died, a call is made again as the next attempt, and its blocks so far are void.
- It is **completed** by the last call's `answered`, **failed** by an error that will not pass or came too often, or
  **cancelled** by `cancel`. `outcome` ends a task that a gateway processed itself while Kafka was away.
- The first of these that the log holds is final: whatever comes later changes nothing.

Producers write `submit` and `cancel`, gateways `outcome` too; all others are the partition owner's own words, written in
its transactions. The key is the task's id, the header `type` says which record it is, the value is a JSON object.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import msgspec
from msgspec import Meta

from topics.headers import Headers
from topics.ids import ID_RULE, valid_id
from topics.malformed import Malformed
from topics.typed import Encoded, Reason, invalid, type_of, value_of

#: UTF-8 bytes of one question.
MAX_QUESTION_BYTES = 256 << 10
#: Bytes of a submit's JSON, in which a character may be six.
MAX_SUBMIT_BYTES = 640 << 10
#: Bytes of one record of the topic, its headers aside.
MAX_RECORD_BYTES = 1 << 20
#: UTF-8 bytes of one block of an answer.
MAX_BLOCK_BYTES = 64 << 10
#: UTF-8 bytes of an answer and its reasoning; of one that a gateway sends in an `outcome`.
MAX_ANSWER_BYTES, MAX_OUTCOME_BYTES = 4 << 20, 640 << 10
#: 2100-01-01: a time past it is a unit mistake.
MAX_TIMESTAMP_MS = 4_102_444_800_000
MAX_ERROR_CHARS = 2_000

_Count = Annotated[int, Meta(ge=0, le=(1 << 53) - 1)]
_Ms = Annotated[int, Meta(ge=0, le=MAX_TIMESTAMP_MS)]
_Name = Annotated[str, Meta(min_length=1, max_length=128)]
_ErrorType = Annotated[str, Meta(pattern="^[a-z0-9_]{1,64}$")]
_Error = Annotated[str, Meta(max_length=MAX_ERROR_CHARS)]


class Status(StrEnum):
    """A task's state, as clients see it; the last three are final."""

    PENDING = "pending"
    PROCESSING = "processing"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def final(self) -> bool:
        """Whether nothing changes it any more."""
        return self in (Status.COMPLETED, Status.FAILED, Status.CANCELLED)


class Kind(StrEnum):
    """What a piece of text is: a model may think aloud before it answers."""

    ANSWER = "answer"
    REASONING = "reasoning"


class Submit(msgspec.Struct, frozen=True, omit_defaults=True):
    """A task. `language` is the answer's; without a `model` the task type's own is called."""

    task_id: str
    task_type: Annotated[str, Meta(pattern=r"^[A-Za-z0-9._-]{1,64}$")]
    user: _Name
    language: Annotated[str, Meta(pattern=r"^[\w][\w ()-]{0,63}$")]
    question: Annotated[str, Meta(min_length=1)]
    submitted_ms: _Ms
    model: _Name | None = None
    webhook_url: Annotated[str, Meta(max_length=2_048, pattern="^https?://")] | None = None


class Cancel(msgspec.Struct, frozen=True):
    """Somebody wants no answer any more. The value may be empty."""

    task_id: str


class Usage(msgspec.Struct, frozen=True):
    """Tokens as the model counted them."""

    prompt_tokens: _Count = 0
    completion_tokens: _Count = 0


class Outcome(msgspec.Struct, frozen=True, omit_defaults=True):
    """How a task ended that a gateway processed itself. `status` is completed or failed; `submit` is the task, if this one
    record is to carry both."""

    task_id: str
    status: Status
    result: str = ""
    reasoning: str = ""
    error_type: _ErrorType | None = None
    error: _Error = ""
    attempts: _Count = 1
    usage: Usage = Usage()
    model: _Name | None = None
    started_ms: _Ms = 0
    finished_ms: _Ms = 0
    submit: Submit | None = None


class Block(msgspec.Struct, frozen=True):
    """A piece of what a call says, numbered from 0 within its attempt."""

    task_id: str
    call: _Count
    term: _Count
    attempt: _Count
    block: _Count
    kind: Kind
    text: Annotated[str, Meta(min_length=1)]


class Answered(msgspec.Struct, frozen=True):
    """A call has ended well; its `blocks` blocks are the answer."""

    task_id: str
    call: _Count
    term: _Count
    attempt: _Count
    blocks: _Count
    streamed: bool
    duration_ms: _Count
    usage: Usage


class CallFailed(msgspec.Struct, frozen=True):
    """A call has ended without an answer. `retry_after_ms` is the pause before the next attempt (jitter included), None
    where none makes sense."""

    task_id: str
    call: _Count
    term: _Count
    attempt: _Count
    error_type: _ErrorType
    error: _Error
    retry_after_ms: _Count | None
    duration_ms: _Count
    usage: Usage = Usage()


class WebhookSent(msgspec.Struct, frozen=True):
    """The task's webhook took the news, or nobody tries any more."""

    task_id: str
    delivered: bool
    attempts: _Count
    error: _Error = ""


class Owner(msgspec.Struct, frozen=True):
    """The partition has a new owner: calls of earlier terms that have no outcome before this record are lost."""

    term: _Count


class Idle(msgspec.Struct, frozen=True):
    """The partition's owner says that time has passed."""


TaskRecord = Submit | Cancel | Outcome | Block | Answered | CallFailed | WebhookSent | Owner | Idle

_KINDS: dict[bytes, type[TaskRecord]] = {
    b"submit": Submit,
    b"cancel": Cancel,
    b"outcome": Outcome,
    b"block": Block,
    b"answered": Answered,
    b"call_failed": CallFailed,
    b"webhook_sent": WebhookSent,
    b"owner": Owner,
    b"idle": Idle,
}
_TYPES = {kind: name for name, kind in _KINDS.items()}
_DECODERS = {name: msgspec.json.Decoder(kind) for name, kind in _KINDS.items()}
#: Records of the partition, not of a task.
_UNKEYED = (Owner, Idle)


def decode(key: bytes | None, value: bytes | None, headers: Headers) -> TaskRecord | Malformed:
    """One record of the topic. Total: any bytes give a record or a `Malformed`, whose reason is a `Reason`."""
    name = type_of(headers, _KINDS)
    if isinstance(name, Malformed):
        return name
    kind = _KINDS[name]
    if kind is Idle:
        return Idle()
    task_id = (key or b"").decode("ascii", "replace")
    if kind not in _UNKEYED and not valid_id(task_id):
        return Malformed(Reason.BAD_ID, f"the key {(key or b'')[:160]!r} is no task id: {ID_RULE}")
    if kind is Cancel:
        return Cancel(task_id)
    record = value_of(_DECODERS[name], value)
    if isinstance(record, (Malformed, Owner, Idle)):
        return record
    if record.task_id != task_id:
        return Malformed(Reason.BAD_ID, f"the key is {task_id}, but task_id is {record.task_id[:160]!r}")
    if kind is Submit and len(value or b"") > MAX_SUBMIT_BYTES:
        return Malformed(
            Reason.TOO_LARGE, f"the task has {len(value or b'')} bytes; at most {MAX_SUBMIT_BYTES} are taken"
        )
    return problem_of(record) or record


def encode(record: TaskRecord) -> Encoded:
    """A record as it is written; `decode` gives it back."""
    key = None if isinstance(record, _UNKEYED) else record.task_id.encode()
    return Encoded(key, msgspec.json.encode(record), [("type", _TYPES[type(record)])])


def problem_of(record: TaskRecord) -> Malformed | None:
    """What is wrong with a record whose fields have the right types, or None."""
    match record:
        case Submit():
            return _problem_of_submit(record)
        case Block():
            return _too_large("the block", record.text, MAX_BLOCK_BYTES)
        case Outcome():
            if record.status not in (Status.COMPLETED, Status.FAILED):
                return invalid(f"status {record.status} is neither completed nor failed")
            if record.status is Status.FAILED and record.error_type is None:
                return invalid("status failed needs an error_type")
            if record.submit is not None and record.submit.task_id != record.task_id:
                return invalid("the task in it has another task_id")
            task = None if record.submit is None else _problem_of_submit(record.submit)
            return task or _too_large("the result", record.result + record.reasoning, MAX_OUTCOME_BYTES)
        case _:
            return None


def new_submit(fields: dict[str, object]) -> Submit | Malformed:
    """A `Submit` of values that came as JSON, or what is wrong with them; fields that it does not know are left out."""
    try:
        submit = msgspec.convert(fields, Submit)
    except msgspec.ValidationError as error:
        return invalid(str(error))
    return _problem_of_submit(submit) or submit


def _problem_of_submit(submit: Submit) -> Malformed | None:
    if not valid_id(submit.task_id):
        return Malformed(Reason.BAD_ID, f"task_id {submit.task_id[:160]!r} is not {ID_RULE}")
    for name in ("user", "model", "webhook_url"):
        text = getattr(submit, name)
        if text is not None and not text.isprintable():
            return invalid(f"{name} {text[:60]!r} has unprintable characters")
    if not submit.question.strip():
        return Malformed(Reason.EMPTY, "the question is blank")
    return _too_large("the question", submit.question, MAX_QUESTION_BYTES)


def _too_large(what: str, text: str, most: int) -> Malformed | None:
    try:
        size = len(text.encode())
    except UnicodeEncodeError:
        return invalid(f"{what} holds half of a surrogate pair, which is no character")
    return Malformed(Reason.TOO_LARGE, f"{what} has {size} bytes; at most {most} are taken") if size > most else None
