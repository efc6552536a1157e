"""The rows that ClickHouse stores: one Arrow schema a table, filled by the folds and written by the sink.

Columns that the server derives (a `DateTime64` beside its milliseconds, a packed version) are not sent. Strings that
repeat are dictionary-encoded: smaller on the wire, and cheaper to build from a column of codes.
"""

from __future__ import annotations

import pyarrow as pa

#: Bits of a version that hold the offset; the epoch stands above them.
VERSION_OFFSET_BITS = 48
EPOCH_MAX = (1 << 16) - 1
OFFSET_MAX = (1 << VERSION_OFFSET_BITS) - 1

TRAFFIC_EVENTS_ROWS = "traffic_events_rows"
PATH_STATS_HOURLY_ROWS = "path_stats_hourly_rows"
STREAM_PROGRESS_ROWS = "stream_progress_rows"
DEADLETTERS_ROWS = "deadletters_rows"
AUDIO_SESSIONS_ROWS = "audio_sessions_rows"
AUDIO_SEGMENTS_ROWS = "audio_segments_rows"
AI_TASKS_ROWS = "ai_tasks_rows"
FILE_JOBS_ROWS = "file_jobs_rows"

_REPEATED = pa.dictionary(pa.int32(), pa.string())
_LABELS = pa.map_(pa.string(), pa.string())

#: One row an accepted event. Coordinates are the record's; `append_ms` is the broker's time.
TRAFFIC_EVENTS = pa.schema(
    [
        ("event_id", pa.string()),
        ("timestamp_ms", pa.int64()),
        ("method", _REPEATED),
        ("path", _REPEATED),
        ("status", pa.uint16()),
        ("client_ip", _REPEATED),
        ("response_time_ms", pa.float64()),
        ("bytes", pa.uint64()),
        ("user_agent", _REPEATED),
        ("dimensions", _LABELS),
        ("producer", _REPEATED),
        ("source_partition", pa.uint16()),
        ("source_offset", pa.uint64()),
        ("append_ms", pa.int64()),
    ]
)

#: One row a key and partition: the whole state of that partition's partial rollup, newest version kept. `hour` is Unix
#: seconds; `timed` counts events with a response time, whose digest is in milliseconds; `dimensions` lists the
#: configured names in one fixed order. A row with `requests` 0 withdraws its key.
PATH_STATS_HOURLY = pa.schema(
    [
        ("hour", pa.uint32()),
        ("path", _REPEATED),
        ("method", _REPEATED),
        ("status_class", _REPEATED),
        ("dimensions", _LABELS),
        ("source_topic", _REPEATED),
        ("source_partition", pa.uint16()),
        ("version", pa.uint64()),
        ("requests", pa.uint64()),
        ("errors", pa.uint64()),
        ("bytes", pa.uint64()),
        ("response_time_us", pa.uint64()),
        ("timed", pa.uint64()),
        ("max_response_time_us", pa.uint64()),
        ("visitors", pa.binary()),
        ("response_time", pa.binary()),
    ]
)

#: One row a partition, newest (epoch, offset, checked_ms) kept. `offset` is the next to read; `append_ms` the highest
#: append time below it; `current` says that at `checked_ms` nothing readable lay between it and `end_offset`;
#: `partitions` is the topic's count, so that a partition nobody reported is missed; counts are totals since the start.
STREAM_PROGRESS = pa.schema(
    [
        ("stream", _REPEATED),
        ("topic", _REPEATED),
        ("partition", pa.uint16()),
        ("partitions", pa.uint16()),
        ("epoch", pa.uint16()),
        ("offset", pa.uint64()),
        ("end_offset", pa.uint64()),
        ("append_ms", pa.int64()),
        ("current", pa.bool_()),
        ("checked_ms", pa.int64()),
        ("late", pa.uint64()),
        ("dead", pa.uint64()),
    ]
)

#: One row a dead letter: where it came from and why. `object_key` is empty unless its bytes rest in the object store.
DEADLETTERS = pa.schema(
    [
        ("stream", _REPEATED),
        ("source_topic", _REPEATED),
        ("source_partition", pa.uint16()),
        ("source_offset", pa.uint64()),
        ("append_ms", pa.int64()),
        ("reason", _REPEATED),
        ("error", pa.string()),
        ("producer", _REPEATED),
        ("size_bytes", pa.uint64()),
        ("object_key", pa.string()),
    ]
)

#: One row a session, newest version kept: its whole state. `status` is open, closed or refused; `seqs` counts the chunks
#: held and `gaps` the seqs that never came up to `last_seq`; `duration_ms` is of the audio, which gaps do not fill.
AUDIO_SESSIONS = pa.schema(
    [
        ("session_id", pa.string()),
        ("version", pa.uint64()),
        ("user", _REPEATED),
        ("format", _REPEATED),
        ("rate", pa.uint32()),
        ("channels", pa.uint8()),
        ("tier", _REPEATED),
        ("store", _REPEATED),
        ("status", _REPEATED),
        ("closed_by", _REPEATED),
        ("error", pa.string()),
        ("opened_ms", pa.int64()),
        ("updated_ms", pa.int64()),
        ("closed_ms", pa.int64()),
        ("last_seq", pa.int64()),
        ("seqs", pa.uint64()),
        ("gaps", pa.uint64()),
        ("duplicates", pa.uint64()),
        ("bytes", pa.uint64()),
        ("duration_ms", pa.uint64()),
        ("recording", pa.string()),
        ("recording_bytes", pa.uint64()),
        ("md5", pa.string()),
        ("source_partition", pa.uint16()),
        ("source_offset", pa.uint64()),
    ]
)

#: One row a segment, newest version kept. `status` is stored, failed or removed (once the recording holds it); `md5` is
#: the object's; the records of its chunks lie within `first_offset` to `last_offset`.
AUDIO_SEGMENTS = pa.schema(
    [
        ("session_id", pa.string()),
        ("first_seq", pa.uint64()),
        ("last_seq", pa.uint64()),
        ("version", pa.uint64()),
        ("status", _REPEATED),
        ("object_key", pa.string()),
        ("size_bytes", pa.uint64()),
        ("md5", pa.string()),
        ("duration_ms", pa.uint64()),
        ("gaps", pa.uint64()),
        ("attempts", pa.uint32()),
        ("error", pa.string()),
        ("updated_ms", pa.int64()),
        ("source_partition", pa.uint16()),
        ("first_offset", pa.uint64()),
        ("last_offset", pa.uint64()),
    ]
)

#: One row a task, newest version kept: its whole state. `result` and `reasoning` are filled once it is completed; `attempts`
#: is the most that one of its calls took, `calls` are all, `lost_calls` those whose worker died; `cost_micros` is millionths
#: of the prices' currency; `processed_by` is worker, or gateway while Kafka was away.
AI_TASKS = pa.schema(
    [
        ("task_id", pa.string()),
        ("version", pa.uint64()),
        ("user", pa.string()),
        ("task_type", _REPEATED),
        ("template", _REPEATED),
        ("language", _REPEATED),
        ("model", _REPEATED),
        ("status", _REPEATED),
        ("error_type", _REPEATED),
        ("error", pa.string()),
        ("question", pa.string()),
        ("result", pa.string()),
        ("reasoning", pa.string()),
        ("segments", pa.uint32()),
        ("batch", pa.uint64()),
        ("attempts", pa.uint32()),
        ("calls", pa.uint32()),
        ("retries", pa.uint32()),
        ("lost_calls", pa.uint32()),
        ("prompt_tokens", pa.uint64()),
        ("completion_tokens", pa.uint64()),
        ("cost_micros", pa.uint64()),
        ("submitted_ms", pa.int64()),
        ("accepted_ms", pa.int64()),
        ("started_ms", pa.int64()),
        ("finished_ms", pa.int64()),
        ("updated_ms", pa.int64()),
        ("webhook", _REPEATED),
        ("producer", _REPEATED),
        ("processed_by", _REPEATED),
        ("source_partition", pa.uint16()),
        ("source_offset", pa.uint64()),
    ]
)

#: One row a file job and version: its whole state, newest version kept. `duration_ms` is how long the result plays.
FILE_JOBS = pa.schema(
    [
        ("job_id", pa.string()),
        ("version", pa.uint64()),
        ("user", pa.string()),
        ("status", _REPEATED),
        ("progress", pa.uint8()),
        ("error_type", _REPEATED),
        ("error", pa.string()),
        ("format", _REPEATED),
        ("quality", _REPEATED),
        ("source_key", pa.string()),
        ("source_url", pa.string()),
        ("source_bytes", pa.uint64()),
        ("r2_key", pa.string()),
        ("size_bytes", pa.uint64()),
        ("checksum", pa.string()),
        ("duration_ms", pa.uint64()),
        ("parts", pa.uint32()),
        ("attempts", pa.uint32()),
        ("lost_attempts", pa.uint32()),
        ("prepare_ms", pa.uint64()),
        ("convert_ms", pa.uint64()),
        ("verify_ms", pa.uint64()),
        ("submitted_ms", pa.int64()),
        ("accepted_ms", pa.int64()),
        ("started_ms", pa.int64()),
        ("finished_ms", pa.int64()),
        ("updated_ms", pa.int64()),
        ("producer", _REPEATED),
        ("source_partition", pa.uint16()),
        ("source_offset", pa.uint64()),
    ]
)

SCHEMAS: dict[str, pa.Schema] = {
    TRAFFIC_EVENTS_ROWS: TRAFFIC_EVENTS,
    PATH_STATS_HOURLY_ROWS: PATH_STATS_HOURLY,
    STREAM_PROGRESS_ROWS: STREAM_PROGRESS,
    DEADLETTERS_ROWS: DEADLETTERS,
    AUDIO_SESSIONS_ROWS: AUDIO_SESSIONS,
    AUDIO_SEGMENTS_ROWS: AUDIO_SEGMENTS,
    AI_TASKS_ROWS: AI_TASKS,
    FILE_JOBS_ROWS: FILE_JOBS,
}


def version_of(epoch: int, offset: int) -> int:
    """The version of a state: epoch (16 bits) above offset (48 bits), so that a raised epoch always wins."""
    assert 0 <= epoch <= EPOCH_MAX and 0 <= offset <= OFFSET_MAX
    return epoch << VERSION_OFFSET_BITS | offset
