"""Every topic the system makes: name, partitions, retention, compaction and size limits, made and checked at start."""

from __future__ import annotations

from dataclasses import dataclass, field

HOUR_MS = 3_600_000
#: How long audio chunks are kept, unless set otherwise: they are large, and within a minute or two they rest elsewhere.
AUDIO_RETENTION_H = 24
#: A letter lies up to so much longer in its topic than its retention: a log is removed by whole segments of a week.
_LINGER_H = 8 * 24
#: What a record's headers and framing may add to its value in a dead letter.
HEADER_ROOM_BYTES = 65_536

TRAFFIC_EVENTS = "traffic.events.v1"
TRAFFIC_DEADLETTER = "traffic.deadletter.v1"
AUDIO_CHUNKS = "audio.chunks.v1"
AUDIO_SEGMENTS = "audio.segments.v1"
AUDIO_DEADLETTER = "audio.deadletter.v1"
AI_TASKS = "ai.tasks.v1"
AI_RESULTS = "ai.results.v1"
AI_DEADLETTER = "ai.deadletter.v1"
FILES_JOBS = "files.jobs.v1"
FILES_PROGRESS = "files.progress.v1"
FILES_DEADLETTER = "files.deadletter.v1"
OWNERS = "sluiceway.owners.v1"
REPLAYS = "sluiceway.replays.v1"


@dataclass(frozen=True)
class TopicSpec:
    """One topic: its name, partitions and explicit configs (Kafka's own names)."""

    name: str
    partitions: int
    configs: dict[str, str] = field(default_factory=dict)


def source(name: str, partitions: int, retention_h: int, max_record_bytes: int) -> TopicSpec:
    """A source topic: broker time (LogAppendTime), kept for `retention_h` hours whatever its size."""
    return TopicSpec(
        name,
        partitions,
        {
            "cleanup.policy": "delete",
            "retention.ms": str(retention_h * HOUR_MS),
            "retention.bytes": "-1",
            "message.timestamp.type": "LogAppendTime",
            "max.message.bytes": str(max_record_bytes + HEADER_ROOM_BYTES),
        },
    )


def outcomes(name: str, partitions: int, retention_h: int) -> TopicSpec:
    """A topic of what happened, written by a fold's own flushes: small records, kept for `retention_h` hours."""
    return TopicSpec(
        name,
        partitions,
        {
            "cleanup.policy": "delete",
            "retention.ms": str(retention_h * HOUR_MS),
            "retention.bytes": "-1",
            "max.message.bytes": str(1 << 20),
        },
    )


def deadletter(name: str, partitions: int, retention_h: int, max_record_bytes: int) -> TopicSpec:
    """A dead-letter topic: room for the largest source record plus its headers."""
    return TopicSpec(
        name,
        partitions,
        {
            "cleanup.policy": "delete",
            "retention.ms": str(retention_h * HOUR_MS),
            "retention.bytes": "-1",
            "max.message.bytes": str(max_record_bytes + 3 * HEADER_ROOM_BYTES),
        },
    )


def changelog(name: str, partitions: int) -> TopicSpec:
    """A fold's changelog: compacted and never deleted; what expires is removed by tombstones."""
    return TopicSpec(
        name,
        partitions,
        {
            "cleanup.policy": "compact",
            "retention.ms": "-1",
            "retention.bytes": "-1",
            "max.message.bytes": str(4 << 20),
            "segment.bytes": str(64 << 20),
            "min.cleanable.dirty.ratio": "0.3",
            "delete.retention.ms": str(24 * HOUR_MS),
        },
    )


def compacted(name: str, partitions: int) -> TopicSpec:
    """A small compacted topic: the last word on each key."""
    return TopicSpec(
        name, partitions, {"cleanup.policy": "compact", "retention.ms": "-1", "segment.bytes": str(8 << 20)}
    )


def replays(retention_h: int) -> TopicSpec:
    """The last replay of each dead letter: as long as any letter lies in its topic, of which `retention_h` is the retention."""
    return TopicSpec(
        REPLAYS,
        1,
        {
            "cleanup.policy": "compact,delete",
            "retention.ms": str((retention_h + _LINGER_H) * HOUR_MS),
            "retention.bytes": "-1",
            "segment.bytes": str(8 << 20),
        },
    )


def changelog_name(group: str) -> str:
    """The changelog topic of a stream's fold, from its consumer group."""
    return f"{group}-changelog"
