"""What is no file job, and the words that say so; the shapes that clients rely on."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from topics import files, files_events
from topics.event_ids import EventId, parse_event_id
from topics.files import (
    AttemptFailed,
    Cancel,
    Converted,
    Idle,
    JobRecord,
    Owner,
    Prepared,
    Progressed,
    Reason,
    SentPart,
    Source,
    Stage,
    Status,
    Submit,
    Swept,
    Verified,
)
from topics.files_events import JobCompleted, JobProgressed
from topics.malformed import Malformed

MD5 = "d41d8cd98f00b204e9800998ecf8427e"
JOB = {"job_id": "j-1", "source": {"key": "uploads/1/a.webm"}, "format": "mp3", "submitted_ms": 1_795_132_800_000}
RECORDS: list[JobRecord] = [
    Submit("j-1", Source(key="uploads/1/a.webm"), "mp3", 1, "u", "high", {"trim": {"start_ms": 1}}, "ä\n.mp3"),
    Submit("j-1", Source(url="https://example.com/a.webm"), "mp4", 1),
    Cancel("j-1"),
    Prepared("j-1", 2, 1, 1_000, None, 12),
    Prepared("j-1", 2, 1, 1_000, "an upload", 12),
    Progressed("j-1", 2, 1, Stage.UPLOADING, 100),
    Converted("j-1", 2, 1, 10, MD5, 1_000, (SentPart(1, MD5), SentPart(2, MD5)), 900),
    Verified("j-1", 2, 1, 3),
    AttemptFailed("j-1", 2, 1, "damaged", "cut off", None),
    Swept("j-1"),
    Owner(4),
    Idle(),
]


def read(value: Any, key: bytes | None = b"j-1", kind: bytes | None = b"submit") -> Any:
    """One record; a reason if it is malformed."""
    data = value if isinstance(value, (bytes, type(None))) else json.dumps(value).encode()
    found = files.decode(key, data, [("type", kind)])
    return found.reason if isinstance(found, Malformed) else found


@pytest.mark.parametrize("record", RECORDS, ids=lambda record: type(record).__name__)
def test_a_record_is_read_as_it_was_written(record: JobRecord) -> None:
    assert files.decode(*files.encode(record)) == record


def test_a_job_as_a_producer_writes_it() -> None:
    assert read(JOB) == Submit("j-1", Source(key="uploads/1/a.webm"), "mp3", 1_795_132_800_000)
    assert read({**JOB, "unknown": [1], "source": {"key": "a", "more": 1}}).source == Source(key="a")
    assert read(b"", kind=b"cancel") == read(None, kind=b"cancel") == Cancel("j-1")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"job_id": "j-2"}, Reason.BAD_ID),
        ({"source": {}}, Reason.INVALID),
        ({"source": {"key": "a", "url": "https://a"}}, Reason.INVALID),
        ({"source": {"key": ""}}, Reason.INVALID),
        ({"source": {"key": "é" * 600}}, Reason.INVALID),
        ({"source": {"url": "file:///etc/passwd"}}, Reason.INVALID),
        ({"source": {"url": "concat:http://a"}}, Reason.INVALID),
        ({"source": {"url": "http://a/\n"}}, Reason.INVALID),
        ({"source": "a"}, Reason.INVALID),
        ({"format": ""}, Reason.INVALID),
        ({"format": "x" * 65}, Reason.INVALID),
        ({"format": None}, Reason.INVALID),
        ({"submitted_ms": -1}, Reason.INVALID),
        ({"submitted_ms": 1.5}, Reason.INVALID),
        ({"submitted_ms": 10**15}, Reason.INVALID),
        ({"user": "a\x00b"}, Reason.INVALID),
        ({"user": "x" * 129}, Reason.INVALID),
        ({"options": []}, Reason.INVALID),
        ({"options": {"x": "y" * 40_000}}, Reason.TOO_LARGE),
        ({"file_name": ""}, Reason.INVALID),
    ],
)
def test_what_is_no_job(change: dict[str, Any], reason: Reason) -> None:
    assert read({**JOB, **change}) == reason
    fields = {**JOB, **change}
    if reason is not Reason.BAD_ID:
        found = files.new_submit(fields)
        assert isinstance(found, Malformed) and found.reason == reason and found.error


def test_what_a_format_may_be_is_for_the_job_to_say() -> None:
    asked = {**JOB, "format": "tape", "quality": "best", "options": {"speed": 2}, "file_name": "../../etc/passwd\n'\""}
    assert read(asked).format == "tape"


@pytest.mark.parametrize("key", [None, b"", b".", b"..", b"a/b", b"a\n", b"a" * 129, b"\xff", "é".encode()])
@pytest.mark.parametrize("kind", [b"submit", b"cancel", b"prepared", b"swept"])
def test_a_key_that_is_no_job_id(key: bytes | None, kind: bytes) -> None:
    assert read(JOB, key, kind) == Reason.BAD_ID


def test_bytes_that_are_no_record() -> None:
    assert read(JOB, kind=None) == read(JOB, kind=b"who") == Reason.BAD_TYPE
    assert read(b"") == read(None) == Reason.EMPTY
    assert read(b"{") == read(b"\xff") == read(json.dumps(JOB).encode() + b"\xff") == Reason.NOT_JSON
    assert read(b'{"a":' + b"[" * 100_000, kind=b"converted") == Reason.NOT_JSON
    assert read(b" " * 300_000, kind=b"converted") == Reason.TOO_LARGE
    assert read([]) == Reason.INVALID


@given(st.binary(max_size=60), st.binary(max_size=200), st.sampled_from([*files._KINDS, b"", b"x"]))
def test_any_bytes_are_a_record_or_said_to_be_none(key: bytes, value: bytes, kind: bytes) -> None:
    found = files.decode(key, value, [("type", kind)])
    assert not isinstance(found, Malformed) or (found.reason in set(Reason) and found.error)


def test_events_are_read_as_they_were_written() -> None:
    where = {"job_id": "j", "user": "u", "at_ms": 5, "source_partition": 1, "epoch": 2, "source_offset": 7, "number": 0}
    done = JobCompleted(**where, progress=100, r2_key="converted/a", size_bytes=3, checksum=MD5, duration_ms=9)
    going = JobProgressed(**where, progress=50, attempt=1, stage=Stage.CONVERTING, percent=30)
    for event in (done, going):
        assert files_events.decode_event(files_events.encode_event(event)) == event
    assert json.loads(files_events.encode_event(done))["type"] == "job_completed"
    assert isinstance(files_events.decode_event(b"{}"), Malformed)
    assert isinstance(files_events.decode_event(None), Malformed)
    assert str(done.id) == "2-7-0" and parse_event_id("2-7-0") == EventId(2, 7, 0) == done.id


@pytest.mark.parametrize("text", ["", "1-2", "1-2-3-4", "a-b-c", "-1-2-3", "1-2-3\n", "١-2-3"])
def test_a_text_that_is_no_event_id(text: str) -> None:
    assert parse_event_id(text) is None


def test_which_states_are_final() -> None:
    assert [status.value for status in Status if status.final] == ["completed", "failed", "cancelled"]
