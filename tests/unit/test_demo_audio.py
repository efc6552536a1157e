"""The demo's judgement of audio: silent about what is right, and one line for anything that is not."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest

from compose.audio_source import read_chunks
from compose.demo.audio_truth import FoundAudio, SentAudio, audio_differences, joined
from compose.demo.speech import LONG, MADE_S, SHORT, opus_file, speech_file
from topics.audio import Format, Store, Tier
from topics.audio_events import ClosedBy, Manifest

#: Seqs 3, 4 and 8 never came, and 2 came twice.
SENT = SentAudio("s", {seq: b"%d" % seq * 4 for seq in (0, 1, 2, 5, 6, 7, 9)}, duplicates=1)
RECORDING = b"an object"


def _found() -> FoundAudio:
    manifest = Manifest(
        session_id="s",
        user="",
        format=Format.PCM_S16LE,
        rate=16_000,
        channels=1,
        tier=Tier.STANDARD,
        store=Store.FLAC,
        opened_ms=1,
        closed_ms=2,
        closed_by=ClosedBy.CLIENT,
        duration_ms=1,
        recording="audio/s/recording.flac",
        size_bytes=len(RECORDING),
        md5=SENT.md5,
        sha256=hashlib.sha256(RECORDING).hexdigest(),
        seqs=((0, 2), (5, 7), (9, 9)),
        gaps=((3, 4), (8, 8)),
    )
    session: dict[str, Any] = {"status": "closed", "closed_by": "client", "error": "", "last_seq": 9, "seqs": 7}
    session |= {"gaps": 3, "duplicates": 1, "bytes": 28, "recording": manifest.recording, "md5": SENT.md5}
    session |= {"recording_bytes": len(RECORDING)}
    segments = [
        {"first_seq": first, "last_seq": last, "status": "removed"} for first, last in ((0, 1), (2, 2), (5, 7), (9, 9))
    ]
    return FoundAudio(manifest, RECORDING, SENT.md5, session, segments)


def test_it_knows_what_was_sent() -> None:
    assert SENT.ranges == [(0, 2), (5, 7), (9, 9)]
    assert SENT.gaps == [(3, 4), (8, 8)]
    assert SentAudio("s", {1: b"x"}).gaps == [(0, 0)]
    assert joined([(3, 4), (0, 2), (2, 2)]) == [(0, 2), (2, 4)], "what overlaps is not hidden"


def test_it_is_silent_about_what_is_right() -> None:
    assert audio_differences(SENT, _found()) == []


@pytest.mark.parametrize(
    "change",
    [
        {"md5": "0" * 32},
        {"sha256": "0" * 64},
        {"size_bytes": 1},
        {"gaps": ()},
        {"gaps": ((3, 4),)},
        {"seqs": ((0, 9),)},
        {"failed": ((3, 4),)},
        {"closed_by": ClosedBy.SILENCE},
    ],
)
def test_it_tells_what_is_wrong_in_a_manifest(change: dict[str, Any]) -> None:
    found = _found()
    (problem,) = audio_differences(SENT, replace(found, manifest=msgspec.structs.replace(found.manifest, **change)))
    assert next(iter(change)) in problem


def test_it_tells_of_a_recording_that_holds_other_audio() -> None:
    (problem,) = audio_differences(SENT, replace(_found(), md5="0" * 32))
    assert problem == f"s: MD5 of the recording's audio is {'0' * 32}, not {SENT.md5}"


@pytest.mark.parametrize("name", _found().session)
def test_it_tells_what_is_wrong_in_clickhouse(name: str) -> None:
    found = _found()
    (problem,) = audio_differences(SENT, replace(found, session={**found.session, name: "other"}))
    assert problem.startswith(f"s: audio_sessions.{name} is other, not ")


@pytest.mark.parametrize("drop", range(4))
def test_it_tells_of_a_segment_that_is_missing_or_there_twice(drop: int) -> None:
    found = _found()
    rest = [segment for number, segment in enumerate(found.segments) if number != drop]
    assert len(audio_differences(SENT, replace(found, segments=rest))) == 1
    assert len(audio_differences(SENT, replace(found, segments=[*found.segments, found.segments[drop]]))) == 1


async def test_there_is_sound_where_no_recorded_speech_is(tmp_path: Path) -> None:
    for name in (LONG, SHORT):
        made = await speech_file(name, tmp_path, data=tmp_path / "nowhere")
        chunks = [chunk.data async for chunk in read_chunks(made, Format.PCM_S16LE, 16_000, 1)]
        assert sum(map(len, chunks)) == MADE_S[name] * 32_000
        assert len(set(chunks)) > len(chunks) // 2
    packets = [chunk.data async for chunk in read_chunks(await opus_file(made, tmp_path), Format.OPUS, 48_000, 1)]
    assert len(packets) >= MADE_S[SHORT] * 50
