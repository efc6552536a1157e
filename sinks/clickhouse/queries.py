"""The questions that status pages and the demo ask of ClickHouse, as typed rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sinks.clickhouse.sink import ClickHouseSink

_AI_TASK = (
    "task_id",
    "status",
    "user",
    "task_type",
    "language",
    "model",
    "result",
    "error_type",
    "error",
    "attempts",
    "retries",
    "lost_calls",
    "calls",
    "segments",
    "prompt_tokens",
    "completion_tokens",
    "cost_micros",
    "submitted_ms",
    "accepted_ms",
    "started_ms",
    "finished_ms",
    "updated_ms",
    "webhook",
)

_FILE_JOB = (
    "job_id",
    "status",
    "progress",
    "user",
    "format",
    "quality",
    "r2_key",
    "size_bytes",
    "checksum",
    "duration_ms",
    "error_type",
    "error",
    "attempts",
    "lost_attempts",
    "submitted_ms",
    "accepted_ms",
    "started_ms",
    "finished_ms",
    "updated_ms",
)


@dataclass(frozen=True)
class Progress:
    """How far one partition of a stream has come; `complete_until` is the stream's, None while a partition is silent."""

    stream: str
    topic: str
    partition: int
    epoch: int
    offset: int
    end_offset: int
    late: int
    dead: int
    checked_at: datetime
    complete_until: datetime | None


@dataclass(frozen=True)
class PathTotals:
    """The totals of one path over all hours; times in milliseconds, None where none was measured."""

    path: str
    requests: int
    errors: int
    bytes: int
    p50_response_time_ms: float | None
    p95_response_time_ms: float | None
    p99_response_time_ms: float | None
    unique_ips: int


@dataclass(frozen=True)
class AudioSessionState:
    """What ClickHouse shows of a session."""

    session_id: str
    status: str
    recording: str


@dataclass(frozen=True)
class AudioSegmentState:
    """What ClickHouse shows of a segment."""

    session_id: str
    first_seq: int
    last_seq: int
    status: str
    md5: str


@dataclass(frozen=True)
class AudioStorage:
    """What the object store holds of audio, and what became of all uploads, by the latest state of each."""

    recordings: int
    recordings_bytes: int
    recordings_failed: int
    segments: int
    segments_bytes: int
    segments_stored: int
    segments_failed: int
    attempts: int


@dataclass(frozen=True)
class UserStorage:
    """What was recorded of one user in some time."""

    user: str
    sessions: int
    duration_ms: int
    bytes: int


@dataclass(frozen=True)
class UsersStorage:
    """What was recorded of all users in some time; `most` are those with the most bytes, the first of them first."""

    users: int
    bytes: int
    most: Sequence[UserStorage]


async def audio_storage(sink: ClickHouseSink) -> AudioStorage:
    """All recordings and segments together. Segments that a recording holds are counted as stored, not among the objects."""
    (sessions,) = await sink.query(
        "SELECT countIf(recording != ''), sumIf(recording_bytes, recording != ''), "
        "countIf(recording = '' AND status = 'closed' AND error != '') "
        f"FROM {sink.qualified('audio_sessions')}"
    )
    (segments,) = await sink.query(
        "SELECT countIf(status = 'stored'), sumIf(size_bytes, status = 'stored'), "
        "countIf(status IN ('stored', 'removed')), countIf(status = 'failed'), sum(attempts) "
        f"FROM {sink.qualified('audio_segments')}"
    )
    return AudioStorage(*sessions, *segments)


async def audio_users(sink: ClickHouseSink, start_ms: int, end_ms: int, limit: int) -> UsersStorage:
    """The recordings of sessions that were opened from `start_ms` on and before `end_ms`, by user."""
    of = (
        f"FROM {sink.qualified('audio_sessions')} "
        "WHERE recording != '' AND opened_at >= fromUnixTimestamp64Milli({start_ms:Int64}, 'UTC') "
        "AND opened_at < fromUnixTimestamp64Milli({end_ms:Int64}, 'UTC')"
    )
    span = {"start_ms": start_ms, "end_ms": end_ms}
    ((users, total),) = await sink.query(f"SELECT uniqExact(user), sum(recording_bytes) {of}", **span)
    rows = await sink.query(
        f"SELECT user, count(), sum(duration_ms), sum(recording_bytes) AS size {of} "
        "GROUP BY user ORDER BY size DESC, user LIMIT {limit:UInt32}",
        **span,
        limit=limit,
    )
    return UsersStorage(users, total, [UserStorage(*row) for row in rows])


@dataclass(frozen=True)
class FileJobs:
    """Jobs that are alike: how many, and their sums. `error_type` is empty unless they failed; `uploaded` says that the last
    attempt had uploaded a result; `size` is the place of the result's class of size, from 0."""

    status: str
    error_type: str
    uploaded: bool
    size: int
    jobs: int
    bytes: int
    prepare_ms: int
    convert_ms: int
    verify_ms: int
    took_ms: int


@dataclass(frozen=True)
class FileStorage:
    """All file jobs, and what they have found of clients' uploads in the object store."""

    jobs: Sequence[FileJobs]
    uploads: int
    uploads_bytes: int


async def file_storage(sink: ClickHouseSink, uploads: str, sizes: Sequence[int]) -> FileStorage:
    """All jobs by how they stand; `sizes` are the bytes from which on the classes of size begin, the first of them 0. Uploads
    are the sources with the prefix `uploads`, each once, however many jobs convert it."""
    jobs = await sink.query(
        "SELECT status, error_type, checksum != '' AS uploaded, "
        "arrayCount(least -> size_bytes >= least, {sizes:Array(UInt64)}) - 1 AS size, count(), sum(size_bytes), "
        "sum(prepare_ms), sum(convert_ms), sum(verify_ms), sum(took_ms) "
        f"FROM {sink.qualified('file_jobs')} GROUP BY status, error_type, uploaded, size ORDER BY ALL",
        sizes=list(sizes),
    )
    ((found, size),) = await sink.query(
        "SELECT count(), sum(size) FROM (SELECT max(source_bytes) AS size "
        f"FROM {sink.qualified('file_jobs')} WHERE startsWith(source_key, {{uploads:String}}) AND source_bytes > 0 "
        "GROUP BY source_key)",
        uploads=uploads,
    )
    return FileStorage([FileJobs(*row) for row in jobs], found, size)


@dataclass(frozen=True)
class FileJobState:
    """What ClickHouse shows of a file job."""

    submitted_ms: int
    status: str
    r2_key: str


async def audio_session_states(sink: ClickHouseSink, session_ids: Sequence[str]) -> Sequence[AudioSessionState]:
    """These sessions, as far as there are such."""
    rows = await sink.query(
        "SELECT session_id, status, recording "
        f"FROM {sink.qualified('audio_sessions')} WHERE session_id IN {{session_ids:Array(String)}}",
        session_ids=list(session_ids),
    )
    return [AudioSessionState(*row) for row in rows]


async def audio_segment_states(sink: ClickHouseSink, session_ids: Sequence[str]) -> Sequence[AudioSegmentState]:
    """The segments of these sessions."""
    rows = await sink.query(
        "SELECT session_id, first_seq, last_seq, status, md5 "
        f"FROM {sink.qualified('audio_segments')} WHERE session_id IN {{session_ids:Array(String)}}",
        session_ids=list(session_ids),
    )
    return [AudioSegmentState(*row) for row in rows]


async def file_job_states(sink: ClickHouseSink, submitted_ms: Sequence[int]) -> Sequence[FileJobState]:
    """The jobs that were submitted at these very milliseconds."""
    rows = await sink.query(
        "SELECT toUnixTimestamp64Milli(submitted_at), status, r2_key "
        f"FROM {sink.qualified('file_jobs')} "
        "WHERE toUnixTimestamp64Milli(submitted_at) IN {submitted_ms:Array(Int64)}",
        submitted_ms=list(submitted_ms),
    )
    return [FileJobState(*row) for row in rows]


async def ai_task_texts(sink: ClickHouseSink, task_id: str) -> tuple[str, str] | None:
    """Question and answer of an AI task; None when there is no row of it."""
    rows = await sink.query(
        f"SELECT question, result FROM {sink.qualified('ai_tasks')} WHERE task_id = {{task_id:String}}", task_id=task_id
    )
    return (str(rows[0][0]), str(rows[0][1])) if rows else None


async def ai_task(sink: ClickHouseSink, task_id: str) -> dict[str, Any] | None:
    """The row of an AI task by the names of its columns, times in milliseconds; None when there is none."""
    return await _row(sink, "ai_tasks_rows", "task_id", task_id, _AI_TASK)


async def file_job(sink: ClickHouseSink, job_id: str) -> dict[str, Any] | None:
    """The row of a file job by the names of its columns, times in milliseconds; None when there is none."""
    return await _row(sink, "file_jobs_rows", "job_id", job_id, _FILE_JOB)


async def _row(sink: ClickHouseSink, table: str, key: str, value: str, columns: Sequence[str]) -> dict[str, Any] | None:
    """The newest row of a key."""
    rows = await sink.query(
        f"SELECT {', '.join(columns)} FROM {sink.qualified(table)} FINAL WHERE {key} = {{value:String}}", value=value
    )
    return dict(zip(columns, rows[0], strict=True)) if rows else None


async def progress(sink: ClickHouseSink) -> Sequence[Progress]:
    """Every partition of every stream, in order."""
    rows = await sink.query(
        "SELECT stream, topic, partition, epoch, offset, end_offset, late, dead, checked_at, complete_until "
        f"FROM {sink.qualified('stream_progress')} ORDER BY stream, topic, partition"
    )
    return [Progress(*row) for row in rows]


async def top_paths(sink: ClickHouseSink, limit: int) -> Sequence[PathTotals]:
    """The `limit` most requested paths, their partial rollups merged over hours, methods and statuses."""
    rows = await sink.query(
        "SELECT p.path, sum(p.requests) AS total, sum(p.errors), sum(toUInt128(p.bytes)), "
        "arrayMap(q -> if(isNaN(q), NULL, q), quantilesTDigestMerge(0.5, 0.95, 0.99)(p.response_time)) AS q, "
        "q[1], q[2], q[3], uniqMerge(p.visitors) "
        f"FROM {sink.qualified('path_stats_hourly_partials')} AS p "
        "GROUP BY p.path ORDER BY total DESC, p.path LIMIT {limit:UInt32}",
        limit=limit,
    )
    return [PathTotals(*row[:4], *row[5:]) for row in rows]
