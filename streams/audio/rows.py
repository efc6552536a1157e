"""The rows of sessions and segments that ClickHouse shows, built where their state is sealed."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from streams.audio import seqs
from streams.audio.session import Kept, Segment, Session, Status
from topics import rows as schemas
from topics.audio import Format
from topics.audio_events import segment_extension, segment_key

Row = dict[str, Any]

_STATUS = {Status.OPEN: "open", Status.CLOSING: "closing", Status.CLOSED: "closed", Status.REFUSED: "refused"}
_KEPT = {Kept.INTENDED: "intended", Kept.STORED: "stored", Kept.FAILED: "failed", Kept.REMOVED: "removed"}


@dataclass
class Rows:
    """The newest row of each session and each segment that changed."""

    sessions: dict[str, Row] = field(default_factory=dict)
    segments: dict[tuple[str, int], Row] = field(default_factory=dict)

    def add(self, session: Session, changed: Iterable[Segment], partition: int) -> None:
        """A session as it stands, with those of its segments that are to be shown anew."""
        self.sessions[session.id] = session_row(session, partition)
        for segment in changed:
            if segment.kept is not Kept.INTENDED:
                self.segments[session.id, segment.first_seq] = segment_row(session, segment, partition)

    def update(self, newer: Rows) -> None:
        """Take newer rows in."""
        self.sessions |= newer.sessions
        self.segments |= newer.segments

    @property
    def newest(self) -> int:
        """The highest version."""
        return max((row["version"] for row in [*self.sessions.values(), *self.segments.values()]), default=0)

    def forget(self, version: int) -> None:
        """Drop what is written: rows up to `version`."""
        self.sessions = {key: row for key, row in self.sessions.items() if row["version"] > version}
        self.segments = {key: row for key, row in self.segments.items() if row["version"] > version}

    def tables(self) -> dict[str, Any]:
        """Arrow tables by the name of ClickHouse's."""
        found = {
            schemas.AUDIO_SESSIONS_ROWS: pa.Table.from_pylist(list(self.sessions.values()), schemas.AUDIO_SESSIONS),
            schemas.AUDIO_SEGMENTS_ROWS: pa.Table.from_pylist(list(self.segments.values()), schemas.AUDIO_SEGMENTS),
        }
        return {name: table for name, table in found.items() if table.num_rows}


def status_name(session: Session) -> str:
    """A session's status as people read it."""
    return _STATUS[session.status]


def missing(session: Session) -> int:
    """Seqs up to the session's last that are not kept: they never came, or could not be stored."""
    lost = sum(segment.last_seq - segment.first_seq + 1 for segment in session.kept(Kept.FAILED))
    return seqs.count(seqs.gaps(session.ranges)) + lost


def told_ms(session: Session, us: int) -> int:
    """Milliseconds of audio; 0 for FLAC, whose chunks do not say."""
    return 0 if session.opened.format is Format.FLAC else us // 1000


def session_row(session: Session, partition: int) -> Row:
    """One session's whole state."""
    opened, recording = session.opened, session.recording
    ended = session.status is not Status.OPEN
    return {
        "session_id": session.id,
        "version": session.version,
        "user": opened.user,
        "format": opened.format.value,
        "rate": opened.rate,
        "channels": opened.channels,
        "tier": opened.tier.value,
        "store": opened.store.value,
        "status": status_name(session),
        "closed_by": session.closed_by.value if session.closed_by else "",
        "error": session.error,
        "opened_ms": session.opened_ms,
        "updated_ms": session.closed_ms if ended else session.last_ms,
        "closed_ms": session.closed_ms if ended else None,
        "last_seq": session.ranges[-1][1] if session.ranges else None,
        "seqs": session.taken,
        "gaps": missing(session),
        "duplicates": session.duplicates,
        "bytes": session.size,
        "duration_ms": recording.duration_ms if recording else told_ms(session, session.duration_us),
        "recording": recording.key if recording else "",
        "recording_bytes": recording.size if recording else 0,
        "md5": recording.md5 if recording else "",
        "source_partition": partition,
        "source_offset": session.opened_offset,
    }


def segment_row(session: Session, segment: Segment, partition: int) -> Row:
    """One segment's fate."""
    extension = segment_extension(session.opened.format)
    return {
        "session_id": session.id,
        "first_seq": segment.first_seq,
        "last_seq": segment.last_seq,
        "version": session.version,
        "status": _KEPT[segment.kept],
        "object_key": segment_key(session.id, segment.first_seq, segment.last_seq, extension),
        "size_bytes": segment.object_size,
        "md5": segment.md5.hex(),
        "duration_ms": told_ms(session, segment.duration_us),
        "gaps": 0,
        "attempts": segment.attempts,
        "error": segment.error,
        "updated_ms": segment.updated_ms,
        "source_partition": partition,
        "first_offset": segment.first_offset,
        "last_offset": segment.last_offset,
    }
