"""One task as the fold knows it, and the snapshot of it that the changelog keeps; its texts are kept beside it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import IntEnum

import msgspec

from streams.ai.text import Text
from topics.ai import Kind, Status, Submit
from topics.ai_events import Figures
from topics.headers import Headers


class CallState(IntEnum):
    """A call's course. HELD: not wanted yet, as the merge while segments are open. PAUSED: until its retry is due."""

    HELD = 0
    WAITING = 1
    RUNNING = 2
    PAUSED = 3
    DONE = 4
    GIVEN_UP = 5


class Webhook(IntEnum):
    """What has become of a task's webhook."""

    NONE = 0
    WANTED = 1
    DELIVERED = 2
    GIVEN_UP = 3


class Call(msgspec.Struct, array_like=True):
    """One call of the model, through all its attempts. `tag` is its place among the waiting (see `streams.ai.line`);
    `term` and `attempt` name the attempt under way, which has written `blocks` blocks and ends by `lease_ms`."""

    state: CallState = CallState.HELD
    tag: int = 0
    attempt: int = 0
    term: int = 0
    retries: int = 0
    lost: int = 0
    blocks: int = 0
    lease_ms: int = 0
    due_ms: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0


class What(IntEnum):
    """What a mark tells; its event is of the same name."""

    ACCEPTED = 1
    STARTED = 2
    DISCARDED = 3
    SEGMENT = 4
    COMPLETED = 5
    FAILED = 6
    CANCELLED = 7


class Mark(msgspec.Struct, array_like=True, frozen=True):
    """Something that happened to a task, short: enough to tell its event again. `value` is a lease or a pause."""

    version: int
    number: int
    at_ms: int
    what: What
    call: int = 0
    attempt: int = 0
    value: int = 0
    label: str = ""


class Origin(msgspec.Struct, array_like=True, frozen=True):
    """The record that submitted a task, and what the rules of that time made of it: never changed, kept once. Its segments
    are kept beside it."""

    value: bytes
    headers: list[tuple[str, bytes | None]]
    offset: int
    append_ms: int
    model: str
    template: str
    segments: int


class Saved(msgspec.Struct, array_like=True):
    """A task's snapshot."""

    status: Status
    accepted_version: int
    accepted_ms: int
    started_ms: int
    deadline_ms: int
    updated_ms: int
    finished_ms: int
    version: int
    batch: int
    calls: list[Call]
    marks: list[Mark]
    error_type: str
    error: str
    webhook: Webhook
    extra: Figures
    gateway: bool
    let_go: bool = False


@dataclass
class Task:
    """The live state. `parts` are its question's segments until it is over, none for an undivided one; `extra` is what a
    gateway did for it; `due_ms` is when the heap of deadlines looks at it next. A task that `let_go` of its texts has a
    digest for a question, and no answer (see `letting_go`)."""

    origin: Origin
    submit: Submit
    parts: list[str]
    accepted_version: int
    accepted_ms: int
    calls: list[Call]
    texts: list[Text] = field(default_factory=list)
    status: Status = Status.PENDING
    started_ms: int = 0
    deadline_ms: int = 0
    updated_ms: int = 0
    finished_ms: int = 0
    version: int = 0
    batch: int = 0
    marks: list[Mark] = field(default_factory=list)
    error_type: str = ""
    error: str = ""
    webhook: Webhook = Webhook.NONE
    extra: Figures = Figures()
    gateway: bool = False
    let_go: bool = False
    due_ms: int = 0

    def __post_init__(self) -> None:
        self.texts = self.texts or [Text() for _ in self.calls]

    @property
    def id(self) -> str:
        """The task's id."""
        return self.submit.task_id

    @property
    def user(self) -> str:
        """Whose it is."""
        return self.submit.user

    @property
    def headers(self) -> Headers:
        """Those of its submit."""
        return self.origin.headers

    @property
    def segments(self) -> int:
        """Into how many its question is split; 1 for an undivided one."""
        return self.origin.segments or 1

    @property
    def last(self) -> int:
        """The call whose answer is the task's: the only one, or the merge."""
        return len(self.calls) - 1

    def segment_of(self, call: int) -> int | None:
        """The segment of a call, from 0; None for the last."""
        return None if call == self.last else call

    def running(self) -> Iterator[int]:
        """The calls under way."""
        return (number for number, call in enumerate(self.calls) if call.state is CallState.RUNNING)

    def done_segments(self) -> Iterator[int]:
        """The segments that have their answer."""
        return (number for number, call in enumerate(self.calls[:-1]) if call.state is CallState.DONE)

    @property
    def result(self) -> str | None:
        """The answer, once there is one and as long as it is kept."""
        return self.said(Kind.ANSWER) if self.status is Status.COMPLETED and not self.let_go else None

    def said(self, kind: Kind) -> str:
        """What the last call has said so far."""
        return self.texts[self.last].of(kind)

    @property
    def begun(self) -> int:
        """The most attempts of a call."""
        return max(call.attempt for call in self.calls)

    def save(self, version: int) -> Saved:
        """Its snapshot, as of `version`."""
        self.version = version
        return Saved(
            self.status,
            self.accepted_version,
            self.accepted_ms,
            self.started_ms,
            self.deadline_ms,
            self.updated_ms,
            self.finished_ms,
            version,
            self.batch,
            self.calls,
            self.marks,
            self.error_type,
            self.error,
            self.webhook,
            self.extra,
            self.gateway,
            self.let_go,
        )


def load(origin: Origin, parts: list[str], saved: Saved, texts: list[Text]) -> Task:
    """The task of a snapshot."""
    return Task(
        origin=origin,
        submit=decode_submit(origin.value),
        parts=parts,
        accepted_version=saved.accepted_version,
        accepted_ms=saved.accepted_ms,
        calls=saved.calls,
        texts=texts,
        status=saved.status,
        started_ms=saved.started_ms,
        deadline_ms=saved.deadline_ms,
        updated_ms=saved.updated_ms,
        finished_ms=saved.finished_ms,
        version=saved.version,
        batch=saved.batch,
        marks=saved.marks,
        error_type=saved.error_type,
        error=saved.error,
        webhook=saved.webhook,
        extra=saved.extra,
        gateway=saved.gateway,
        let_go=saved.let_go,
    )


encode = msgspec.msgpack.Encoder().encode
decode_saved = msgspec.msgpack.Decoder(Saved).decode
decode_origin = msgspec.msgpack.Decoder(Origin).decode
decode_submit = msgspec.json.Decoder(Submit).decode
