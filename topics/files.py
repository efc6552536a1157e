"""The records of `files.jobs.v1`: their strict decoding, and the one place that says what a valid job is.

The life of a job, all of it in the order of one partition:

- `submit` makes it **accepted**. It waits for a slot among its user's jobs.
- An attempt begins. Once its source was found and its upload was signed, `prepared` makes the job **prepared**; with the
  first `progressed` of its converter it is **converting**.
- `converted` says that the result lies in the bucket, or all parts of it do: the job is **verifying**, and from there on the
  attempt outlives its worker. `verified` makes it **completed**.
- `attempt_failed` begins another attempt after a pause, unless it says that none makes sense or there were enough: then the
  job is **failed**. `cancel` makes it **cancelled**.
- The first of these ends that the log holds is final: whatever comes later changes nothing.
- `swept`: what attempts have left in the bucket that did not win is gone.

Producers write `submit` and `cancel`; all others are the partition owner's own words, written in its transactions. The key is
the job's id, the header `type` says which record it is, the value is a JSON object. No record holds a signed URL.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from topics.headers import Headers
from topics.ids import ID_RULE, valid_id
from topics.malformed import Malformed
from topics.typed import Encoded, Reason, invalid, type_of, value_of

#: Bytes of a submit's JSON.
MAX_SUBMIT_BYTES = 32 << 10
#: Bytes of any record of the topic: a `converted` tells its parts.
MAX_RECORD_BYTES = 256 << 10
#: Parts of one result.
MAX_PARTS = 1_000
#: 2100-01-01: a time past it is a unit mistake.
MAX_TIMESTAMP_MS = 4_102_444_800_000
MAX_ERROR_CHARS = 2_000
#: Bytes of UTF-8 of an object's key, as S3 has it.
MAX_KEY_BYTES = 1_024

Count = Annotated[int, Meta(ge=0, le=(1 << 53) - 1)]
_Ms = Annotated[int, Meta(ge=0, le=MAX_TIMESTAMP_MS)]
_Name = Annotated[str, Meta(min_length=1, max_length=128)]
_Label = Annotated[str, Meta(min_length=1, max_length=64)]
ErrorType = Annotated[str, Meta(pattern="^[a-z0-9_]{1,64}$")]
_Error = Annotated[str, Meta(max_length=MAX_ERROR_CHARS)]
Md5 = Annotated[str, Meta(pattern="^[0-9a-f]{32}$")]


class Status(StrEnum):
    """A job's state, as clients see it; the last three are final."""

    ACCEPTED = "accepted"
    PREPARED = "prepared"
    CONVERTING = "converting"
    VERIFYING = "verifying"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def final(self) -> bool:
        """Whether nothing changes it any more."""
        return self in (Status.COMPLETED, Status.FAILED, Status.CANCELLED)


class Stage(StrEnum):
    """What a converter is busy with."""

    FETCHING = "fetching"
    CONVERTING = "converting"
    UPLOADING = "uploading"


class Source(msgspec.Struct, frozen=True, omit_defaults=True):
    """Where the file is: an object of the bucket by its `key`, or an http(s) `url`. One of the two."""

    key: Annotated[str, Meta(min_length=1, max_length=MAX_KEY_BYTES)] | None = None
    url: Annotated[str, Meta(max_length=2_048, pattern="^https?://")] | None = None


class Submit(msgspec.Struct, frozen=True, omit_defaults=True):
    """A job. What `format`, `quality` and `options` may be is said by `streams.files.formats`: a job that asks for what
    there is not fails, and says so. `file_name` is what the result is called, its extension replaced."""

    job_id: str
    source: Source
    format: _Label
    submitted_ms: _Ms
    user: _Name | None = None
    quality: _Label | None = None
    options: dict[str, Any] = {}
    file_name: Annotated[str, Meta(min_length=1, max_length=1_024)] | None = None


class Cancel(msgspec.Struct, frozen=True):
    """Somebody wants no result any more. The value may be empty."""

    job_id: str


class Prepared(msgspec.Struct, frozen=True):
    """The source is there and the upload is signed. `upload_id` is that of a multipart upload, begun where the result may
    be large; `prepare_ms` is how long that took."""

    job_id: str
    term: Count
    attempt: Count
    source_bytes: Count
    upload_id: Annotated[str, Meta(max_length=2_048)] | None
    prepare_ms: Count


class Progressed(msgspec.Struct, frozen=True):
    """How far a converter is with a stage, percent."""

    job_id: str
    term: Count
    attempt: Count
    stage: Stage
    percent: Annotated[int, Meta(ge=0, le=100)]


class SentPart(msgspec.Struct, frozen=True):
    """A part that the store has taken. Its ETag is the MD5 of its bytes."""

    part_number: Annotated[int, Meta(ge=1, le=MAX_PARTS)]
    etag: Md5


class Converted(msgspec.Struct, frozen=True):
    """The converter has uploaded the result, whole or in `parts`. `checksum` is the MD5 of its bytes, `duration_ms` how long
    it plays; `convert_ms` is how long all of the converter's work took."""

    job_id: str
    term: Count
    attempt: Count
    size_bytes: Count
    checksum: Md5
    duration_ms: Count
    parts: Annotated[tuple[SentPart, ...], Meta(max_length=MAX_PARTS)]
    convert_ms: Count


class Verified(msgspec.Struct, frozen=True):
    """The store holds the result, of the size and sum that the converter told."""

    job_id: str
    term: Count
    attempt: Count
    verify_ms: Count


class AttemptFailed(msgspec.Struct, frozen=True):
    """An attempt has come to nothing. `retry_after_ms` is the pause before the next one (jitter included), None where none
    makes sense."""

    job_id: str
    term: Count
    attempt: Count
    error_type: ErrorType
    error: _Error
    retry_after_ms: Count | None


class Swept(msgspec.Struct, frozen=True):
    """Nothing is left in the bucket of those of a job's attempts that did not win, and none of their URLs works any more."""

    job_id: str


class Owner(msgspec.Struct, frozen=True):
    """The partition has a new owner: conversions of earlier terms that have no outcome before this record are lost."""

    term: Count


class Idle(msgspec.Struct, frozen=True):
    """The partition's owner says that time has passed."""


OfAttempt = Prepared | Progressed | Converted | Verified | AttemptFailed
JobRecord = Submit | Cancel | OfAttempt | Swept | Owner | Idle

_KINDS: dict[bytes, type[JobRecord]] = {
    b"submit": Submit,
    b"cancel": Cancel,
    b"prepared": Prepared,
    b"progressed": Progressed,
    b"converted": Converted,
    b"verified": Verified,
    b"attempt_failed": AttemptFailed,
    b"swept": Swept,
    b"owner": Owner,
    b"idle": Idle,
}
_TYPES = {kind: name for name, kind in _KINDS.items()}
_DECODERS = {name: msgspec.json.Decoder(kind) for name, kind in _KINDS.items()}
#: Records of the partition, not of a job.
_UNKEYED = (Owner, Idle)


def decode(key: bytes | None, value: bytes | None, headers: Headers) -> JobRecord | Malformed:
    """One record of the topic. Total: any bytes give a record or a `Malformed`, whose reason is a `Reason`."""
    name = type_of(headers, _KINDS)
    if isinstance(name, Malformed):
        return name
    kind = _KINDS[name]
    if kind is Idle:
        return Idle()
    job_id = (key or b"").decode("ascii", "replace")
    if kind not in _UNKEYED and not valid_id(job_id):
        return Malformed(Reason.BAD_ID, f"the key {(key or b'')[:160]!r} is no job id: {ID_RULE}")
    if kind is Cancel:
        return Cancel(job_id)
    most = MAX_SUBMIT_BYTES if kind is Submit else MAX_RECORD_BYTES
    if len(value or b"") > most:
        return Malformed(Reason.TOO_LARGE, f"the record has {len(value or b'')} bytes; at most {most} are taken")
    record = value_of(_DECODERS[name], value)
    if isinstance(record, (Malformed, Owner, Idle)):
        return record
    if record.job_id != job_id:
        return Malformed(Reason.BAD_ID, f"the key is {job_id}, but job_id is {record.job_id[:160]!r}")
    return (_problem_of_submit(record) if isinstance(record, Submit) else None) or record


def encode(record: JobRecord) -> Encoded:
    """A record as it is written; `decode` gives it back."""
    key = None if isinstance(record, _UNKEYED) else record.job_id.encode()
    return Encoded(key, msgspec.json.encode(record), [("type", _TYPES[type(record)])])


def new_submit(fields: dict[str, object]) -> Submit | Malformed:
    """A `Submit` of values that came as JSON, or what is wrong with them; fields that it does not know are left out."""
    try:
        submit = msgspec.convert(fields, Submit)
        size = len(msgspec.json.encode(submit))
    except (msgspec.ValidationError, UnicodeEncodeError, RecursionError) as error:
        return invalid(str(error))
    if size > MAX_SUBMIT_BYTES:
        return Malformed(Reason.TOO_LARGE, f"the job has {size} bytes; at most {MAX_SUBMIT_BYTES} are taken")
    return _problem_of_submit(submit) or submit


def _problem_of_submit(submit: Submit) -> Malformed | None:
    """What is wrong with a job whose fields have the right types, or None."""
    if not valid_id(submit.job_id):
        return Malformed(Reason.BAD_ID, f"job_id {submit.job_id[:160]!r} is not {ID_RULE}")
    if submit.user is not None and not submit.user.isprintable():
        return invalid(f"user {submit.user[:60]!r} has unprintable characters")
    source = submit.source
    if (source.key is None) == (source.url is None):
        return invalid("source has either a key or a url")
    if source.key is not None and len(source.key.encode("utf-8", "replace")) > MAX_KEY_BYTES:
        return invalid(f"source.key has more than {MAX_KEY_BYTES} bytes")
    if source.url is not None and not (source.url.isprintable() and " " not in source.url):
        return invalid("source.url has characters that no URL has")
    return None
