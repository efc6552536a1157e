"""What happened to file jobs: the events of `files.progress.v1`."""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta

from topics.event_ids import EventId
from topics.files import Stage
from topics.malformed import Malformed, decoded

_Count = Annotated[int, Meta(ge=0)]


class _Event(msgspec.Struct, frozen=True, tag_field="type", kw_only=True):
    """`at_ms` is the partition's clock; `progress` is how far the job is, 0 to 100. `epoch`, `source_offset` and `number`
    make the id. The key is the job's id."""

    job_id: str
    user: str
    at_ms: _Count
    progress: _Count
    source_partition: _Count
    epoch: _Count
    source_offset: _Count
    number: _Count

    @property
    def id(self) -> EventId:
        """What orders and names it."""
        return EventId(self.epoch, self.source_offset, self.number)


class JobAccepted(_Event, frozen=True, tag="job_accepted", kw_only=True):
    """The job is recorded: accepted."""

    format: str
    quality: str
    submitted_ms: _Count


class AttemptStarted(_Event, frozen=True, tag="attempt_started", kw_only=True):
    """An attempt begins: its source is looked for, its upload is signed."""

    attempt: _Count


class JobPrepared(_Event, frozen=True, tag="job_prepared", kw_only=True):
    """The source is there, and the converter is asked: prepared."""

    attempt: _Count


class JobProgressed(_Event, frozen=True, tag="job_progressed", kw_only=True):
    """The converter is so far with a stage, percent: converting."""

    attempt: _Count
    stage: Stage
    percent: _Count


class ResultUploaded(_Event, frozen=True, tag="result_uploaded", kw_only=True):
    """The converter has uploaded the result: verifying."""

    attempt: _Count
    size_bytes: _Count


class AttemptDiscarded(_Event, frozen=True, tag="attempt_discarded", kw_only=True):
    """An attempt has come to nothing, and another one follows after `retry_after_ms`. `error_type` is `lost` when its
    worker died."""

    attempt: _Count
    error_type: str
    retry_after_ms: _Count


class JobCompleted(_Event, frozen=True, tag="job_completed", kw_only=True):
    """The result lies in the bucket under `r2_key`, verified. `checksum` is its MD5."""

    r2_key: str
    size_bytes: _Count
    checksum: str
    duration_ms: _Count


class JobFailed(_Event, frozen=True, tag="job_failed", kw_only=True):
    """There is no result and will be none. `error_type` is a label of few values."""

    error_type: str
    error: str


class JobCancelled(_Event, frozen=True, tag="job_cancelled", kw_only=True):
    """Somebody wanted no result any more."""


JobEvent = (
    JobAccepted
    | AttemptStarted
    | JobPrepared
    | JobProgressed
    | ResultUploaded
    | AttemptDiscarded
    | JobCompleted
    | JobFailed
    | JobCancelled
)
#: After one of these nothing follows of its job.
FINAL_EVENTS = (JobCompleted, JobFailed, JobCancelled)

_events: msgspec.json.Decoder[JobEvent] = msgspec.json.Decoder(JobEvent)


def encode_event(event: JobEvent) -> bytes:
    """An event as the topic's JSON."""
    return msgspec.json.encode(event)


def decode_event(value: bytes | None) -> JobEvent | Malformed:
    """One record's value. Total: any bytes give an event or a `Malformed`."""
    return decoded(_events, value)
