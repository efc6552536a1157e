"""What of the audio folder nobody needs any more: decided for each object and upload from what is known of its session.

Pure. In doubt all is kept: a segment goes only if it is, byte for byte, what a recording that is there holds already.
One that failed may be the only copy of its audio: it goes when its dead letter is purged.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from topics.audio_events import Manifest, SeqRange

_KEY = re.compile(
    r"audio/(?P<session>[A-Za-z0-9._-]{1,128})/"
    r"(?:segments/(?P<first>\d{10,})-(?P<last>\d{10,})\.\w+|(?P<recording>recording\.\w+)|manifest\.json)"
)


@dataclass(frozen=True)
class Place:
    """What a key says: its session, and of a segment the seqs. A manifest is neither segment nor recording."""

    session_id: str
    segment: SeqRange | None
    recording: bool


@dataclass(frozen=True)
class SegmentFacts:
    """A segment as ClickHouse has it; `md5` is of its object, in hex."""

    status: str
    md5: str


@dataclass(frozen=True)
class SessionFacts:
    """A session as ClickHouse has it; `recording` is empty as long as there is none."""

    status: str
    recording: str


@dataclass(frozen=True)
class Known:
    """All that is known of a session. `manifest` only if the recording that it describes is there, in its size."""

    session: SessionFacts | None = None
    segments: Mapping[SeqRange, SegmentFacts] = field(default_factory=dict)
    manifest: Manifest | None = None


class Verdict(StrEnum):
    """Why an object or upload goes (`REMOVED`) or stays."""

    RECORDED = "its audio is in the recording"
    IN_NO_MANIFEST = "no manifest names it"
    ABANDONED = "its upload was given up"
    LIVE = "its session is live"
    NEEDED = "its session has no other copy of it, or keeps its segments"
    FAILED = "it failed, and its dead letter may be replayed"
    NO_RECORDING = "no recording holds its audio"
    UNKNOWN = "nothing is known of it"
    REPLACED = "it was written anew meanwhile"


REMOVED = frozenset({Verdict.RECORDED, Verdict.IN_NO_MANIFEST, Verdict.ABANDONED})


def place_of(key: str) -> Place | None:
    """What a key of the audio folder names; None for one that is not the product's."""
    found = _KEY.fullmatch(key)
    if found is None:
        return None
    segment = (int(found["first"]), int(found["last"])) if found["first"] else None
    return Place(found["session"], segment, bool(found["recording"]))


def live(known: Known) -> bool:
    """Whether audio of the session, or its recording, may be on its way."""
    return known.session is not None and known.session.status not in ("closed", "refused")


def judge_object(key: str, etag: str, known: Known) -> Verdict | None:
    """Whether an old object may go; None for what is no leftover at all."""
    place = place_of(key)
    if place is None:
        return Verdict.UNKNOWN
    if live(known):
        return Verdict.LIVE
    if place.segment is not None:
        return _judge_segment(place.segment, etag, known)
    if not place.recording or (known.manifest is not None and known.manifest.recording == key):
        return None
    if known.session is None:
        return Verdict.UNKNOWN
    return Verdict.NEEDED if known.session.recording == key else Verdict.IN_NO_MANIFEST


def _judge_segment(seqs: SeqRange, etag: str, known: Known) -> Verdict:
    segment = known.segments.get(seqs)
    if segment is None or known.session is None:
        return Verdict.UNKNOWN
    if segment.status == "failed":
        return Verdict.FAILED
    if segment.status != "removed" or segment.md5 != etag:
        return Verdict.NEEDED
    if known.manifest is None or not _within(seqs, known.manifest):
        return Verdict.NO_RECORDING
    return Verdict.RECORDED


def _within(seqs: SeqRange, manifest: Manifest) -> bool:
    return any(first <= seqs[0] and seqs[1] <= last for first, last in manifest.seqs)


def judge_upload(known: Known) -> Verdict:
    """Whether an old upload may be aborted: what it holds is made of the segments, or of a recording, that stay."""
    return Verdict.LIVE if live(known) else Verdict.ABANDONED
