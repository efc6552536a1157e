"""What a job may ask for, and what it is told if it asks for something else."""

from __future__ import annotations

from typing import Any

import pytest

from streams.files import formats
from streams.files.formats import FORMATS, Plan, Quality
from topics.malformed import Malformed


def planned(*asked: Any) -> Plan:
    found = formats.plan(*asked)
    assert isinstance(found, Plan), found
    return found


@pytest.mark.parametrize("name", [*FORMATS, *formats.ALIASES])
@pytest.mark.parametrize("quality", [None, *Quality])
def test_each_format_in_each_quality(name: str, quality: str | None) -> None:
    plan = planned(name, quality)
    assert plan.quality == (quality or "medium")
    words = plan.arguments()
    assert words[-2:] == ["-f", plan.format.muxer]
    assert ("-vn" in words) is not plan.format.video


def test_the_list_says_all_there_is() -> None:
    listed = formats.described()
    assert [entry["format"] for entry in listed] == ["mp3", "m4a", "opus", "flac", "wav", "mp4", "webm"]
    assert {alias for entry in listed for alias in entry["aliases"]} == set(formats.ALIASES)
    assert all(entry["qualities"] == ["low", "medium", "high"] for entry in listed)
    assert {entry["kind"] for entry in listed if "scale" in entry["options"]} == {"video"}


@pytest.mark.parametrize(
    ("asked", "reason"),
    [
        (("tape",), "unknown_format"),
        (("",), "unknown_format"),
        (("mp3 -y /etc/passwd",), "unknown_format"),
        (("mp3", "best"), "unknown_quality"),
        (("mp3", None, {"speed": 2}), "bad_options"),
        (("mp3", None, {"trim": {"start_ms": -1}}), "bad_options"),
        (("mp3", None, {"trim": {"start_ms": "1; rm"}}), "bad_options"),
        (("mp3", None, {"trim": {"duration_ms": 0}}), "bad_options"),
        (("mp3", None, {"trim": {"until_ms": 9}}), "bad_options"),
        (("mp3", None, {"scale": {"width": 100}}), "bad_options"),
        (("mp4", None, {"scale": {"width": 15}}), "bad_options"),
        (("mp4", None, {"scale": {"height": 100_000}}), "bad_options"),
        (("mp4", None, {"scale": []}), "bad_options"),
    ],
)
def test_what_there_is_not(asked: tuple[Any, ...], reason: str) -> None:
    found = formats.plan(*asked)
    assert isinstance(found, Malformed) and found.reason == reason
    assert asked[-1] == "" or "mp3" in found.error or "low" in found.error or "trim" in found.error, found.error


def test_how_long_a_result_plays() -> None:
    assert planned("mp3").duration_ms(5_000) == 5_000
    trimmed = planned("mp3", None, {"trim": {"start_ms": 1_500, "duration_ms": 2_000}})
    assert [trimmed.duration_ms(ms) for ms in (10_000, 3_000, 1_500, 0)] == [2_000, 1_500, 0, 0]
    assert trimmed.seek() == ["-ss", "1.500"]
