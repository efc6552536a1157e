"""What must have become of the demo's audio, from what was sent alone: the recording, its manifest and ClickHouse's rows."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from topics.audio_events import Manifest

SEGMENTS_MIN = 2

Row = Mapping[str, Any]


@dataclass
class SentAudio:
    """A session as its sender knows it. `duplicates` is None where the sender cannot know how often it sent a chunk."""

    session_id: str
    chunks: dict[int, bytes] = field(default_factory=dict)
    duplicates: int | None = None

    @property
    def md5(self) -> str:
        """Of all audio, in the order of the seqs."""
        return md5_of(self.chunks[seq] for seq in sorted(self.chunks))

    @property
    def ranges(self) -> list[tuple[int, int]]:
        """The seqs that were sent, first and last included."""
        return joined((seq, seq) for seq in self.chunks)

    @property
    def gaps(self) -> list[tuple[int, int]]:
        """The seqs that were not."""
        ends = [-1, *(last for _, last in self.ranges)]
        return [(end + 1, first - 1) for end, (first, _) in zip(ends, self.ranges, strict=False) if first > end + 1]


@dataclass(frozen=True)
class FoundAudio:
    """A session as the object store and ClickHouse have it. `md5` is of the audio in the recording, decoded."""

    manifest: Manifest
    recording: bytes
    md5: str
    session: Row
    segments: Sequence[Row]


def md5_of(pieces: Any) -> str:
    """The MD5 of some bytes after each other, in hex."""
    sum_ = hashlib.md5(usedforsecurity=False)
    for piece in pieces:
        sum_.update(piece)
    return sum_.hexdigest()


def joined(ranges: Any) -> list[tuple[int, int]]:
    """Ranges in order, joined where one follows the other; those that overlap stay apart."""
    found: list[tuple[int, int]] = []
    for first, last in sorted(ranges):
        if found and found[-1][1] == first - 1:
            found[-1] = (found[-1][0], last)
        else:
            found.append((first, last))
    return found


def audio_differences(sent: SentAudio, found: FoundAudio) -> list[str]:
    """Every disagreement in a line, empty when there is none."""
    manifest = found.manifest
    facts = {
        "MD5 of the recording's audio": (found.md5, sent.md5),
        "manifest's md5": (manifest.md5, sent.md5),
        "manifest's sha256": (manifest.sha256, hashlib.sha256(found.recording).hexdigest()),
        "manifest's size_bytes": (manifest.size_bytes, len(found.recording)),
        "manifest's seqs": ([tuple(pair) for pair in manifest.seqs], sent.ranges),
        "manifest's gaps": ([tuple(pair) for pair in manifest.gaps], sent.gaps),
        "manifest's failed": ([tuple(pair) for pair in manifest.failed], []),
        "manifest's closed_by": (str(manifest.closed_by), "client"),
        **_session_facts(sent, found),
        **_segment_facts(sent, found),
    }
    return [f"{sent.session_id}: {name} is {is_}, not {due}" for name, (is_, due) in facts.items() if is_ != due]


def _session_facts(sent: SentAudio, found: FoundAudio) -> dict[str, tuple[Any, Any]]:
    due = {
        "status": "closed",
        "closed_by": "client",
        "error": "",
        "last_seq": max(sent.chunks),
        "seqs": len(sent.chunks),
        "gaps": sum(last - first + 1 for first, last in sent.gaps),
        "bytes": sum(map(len, sent.chunks.values())),
        "recording": found.manifest.recording,
        "recording_bytes": len(found.recording),
        "md5": sent.md5,
    }
    if sent.duplicates is not None:
        due["duplicates"] = sent.duplicates
    return {f"audio_sessions.{name}": (found.session.get(name), value) for name, value in due.items()}


def _segment_facts(sent: SentAudio, found: FoundAudio) -> dict[str, tuple[Any, Any]]:
    several = len(found.segments) >= SEGMENTS_MIN
    return {
        "seqs of audio_segments": (joined((s["first_seq"], s["last_seq"]) for s in found.segments), sent.ranges),
        # The recording holds their audio now.
        "status of audio_segments": (sorted({s["status"] for s in found.segments}), ["removed"]),
        "number of audio_segments": (len(found.segments) if not several else "several", "several"),
    }
