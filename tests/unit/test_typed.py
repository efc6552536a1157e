"""A record that is taken can be read again wherever it is: what nests deeper than that is malformed, in any field."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from topics import ai, files
from topics.malformed import Malformed
from topics.typed import DEPTH_MAX, Reason, value_of

SUBMIT = [("type", b"submit")]
JOB = b'{"job_id":"j","source":{"key":"k"},"format":"mp3","submitted_ms":1,"%b":%b}'
TASK = (
    b'{"task_id":"j","task_type":"chat","user":"u","language":"en","question":"q","submitted_ms":1,"source":{},"%b":%b}'
)


def _nested(depth: int) -> bytes:
    return b'{"a":' * (depth // 2) + b"[" * (depth - depth // 2) + b"]" * (depth - depth // 2) + b"}" * (depth // 2)


def _deep_down(frames: int, work: Callable[[], Any]) -> Any:
    return work() if frames == 0 else _deep_down(frames - 1, work)


@pytest.mark.parametrize(("topic", "record", "name"), [(files, JOB, b"options"), (files, JOB, b"x"), (ai, TASK, b"x")])
def test_what_is_taken_can_be_read_at_any_depth(topic: Any, record: bytes, name: bytes) -> None:
    deepest = record % (name, _nested(DEPTH_MAX - 1))
    for frames in (0, 800):
        taken = _deep_down(frames, lambda: topic.decode(b"j", deepest, SUBMIT))
        assert not isinstance(taken, Malformed), taken
    for depth in (DEPTH_MAX, 500, 3_000):
        refused = topic.decode(b"j", record % (name, _nested(depth)), SUBMIT)
        assert isinstance(refused, Malformed) and refused.reason == Reason.NOT_JSON


def test_brackets_in_strings_nest_nothing() -> None:
    read = msgspec.json.Decoder()
    said = '[{"' * 50 + "\\" + "\n"
    assert value_of(read, msgspec.json.encode([said, {said: "]"}])) == [said, {said: "]"}]
    for broken in (b'"[[' * 50_000, b'"\\"' * 80_000 + b"[" * 40, b"]" * 100 + b"[" * 133):
        assert isinstance(value_of(read, broken), Malformed)
