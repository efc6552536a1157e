"""What keys of the audio folder say, and that no other key is taken for one of them."""

from __future__ import annotations

import pytest

from streams.audio.leftovers import Known, Place, Verdict, judge_object, judge_upload, place_of
from topics.audio_events import manifest_key, recording_key, segment_key

STRANGE = (
    "",
    "audio/",
    "audio/s/",
    "audio/s/notes.txt",
    "audio/s/segments/",
    "audio/s/segments/1-2.wav",
    "audio/s/segments/0000000001-0000000002.wav.part",
    "audio/s/segments/0000000001-0000000002.wav\n",
    "audio/s/t/recording.flac",
    "audio/a b/recording.flac",
    "audio//recording.flac",
    "other/s/recording.flac",
    "xaudio/s/recording.flac",
)


def test_the_products_own_keys_are_known() -> None:
    assert place_of(segment_key("a.b-c", 3, 12, "wav")) == Place("a.b-c", (3, 12), False)
    assert place_of(segment_key("s", 3, 10**12, "ogg")) == Place("s", (3, 10**12), False)
    assert place_of(recording_key("s", "flac")) == Place("s", None, True)
    assert place_of(manifest_key("s")) == Place("s", None, False)


@pytest.mark.parametrize("key", STRANGE)
def test_what_is_not_the_products_stays(key: str) -> None:
    assert place_of(key) is None
    assert judge_object(key, "", Known()) is Verdict.UNKNOWN


def test_of_an_unknown_session_only_uploads_go() -> None:
    # The parts of an upload are made of what else is there.
    assert judge_object(segment_key("s", 0, 9, "wav"), "", Known()) is Verdict.UNKNOWN
    assert judge_object(recording_key("s", "flac"), "", Known()) is Verdict.UNKNOWN
    assert judge_object(manifest_key("s"), "", Known()) is None
    assert judge_upload(Known()) is Verdict.ABANDONED
