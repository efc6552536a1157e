-- Audio: the latest state of each session and segment, by id. The newest version replaces the others, so the tables have
-- no partitions: rows of one id must meet in one.

CREATE TABLE IF NOT EXISTS {database}.audio_sessions_rows
(
    session_id String,
    version UInt64,
    user LowCardinality(String),
    format LowCardinality(String),
    rate UInt32,
    channels UInt8,
    tier LowCardinality(String),
    store LowCardinality(String),
    status LowCardinality(String),
    closed_by LowCardinality(String),
    error String,
    opened_ms Int64,
    updated_ms Int64,
    closed_ms Nullable(Int64),
    last_seq Nullable(Int64),
    seqs UInt64,
    gaps UInt64,
    duplicates UInt64,
    bytes UInt64,
    duration_ms UInt64,
    recording String,
    recording_bytes UInt64,
    md5 String,
    source_partition UInt16,
    source_offset UInt64
)
ENGINE = ReplacingMergeTree(version)
ORDER BY session_id;

CREATE VIEW IF NOT EXISTS {database}.audio_sessions AS
SELECT
    session_id, user, format, rate, channels, tier, store, status, closed_by, error,
    fromUnixTimestamp64Milli(opened_ms, 'UTC') AS opened_at,
    fromUnixTimestamp64Milli(updated_ms, 'UTC') AS updated_at,
    fromUnixTimestamp64Milli(closed_ms, 'UTC') AS closed_at,
    last_seq, seqs, gaps, duplicates, bytes, duration_ms, recording, recording_bytes, md5,
    source_partition, source_offset
FROM {database}.audio_sessions_rows FINAL;

CREATE TABLE IF NOT EXISTS {database}.audio_segments_rows
(
    session_id String,
    first_seq UInt64,
    last_seq UInt64,
    version UInt64,
    status LowCardinality(String),
    object_key String,
    size_bytes UInt64,
    md5 String,
    duration_ms UInt64,
    gaps UInt64,
    attempts UInt32,
    error String,
    updated_ms Int64,
    source_partition UInt16,
    first_offset UInt64,
    last_offset UInt64
)
ENGINE = ReplacingMergeTree(version)
ORDER BY (session_id, first_seq, last_seq);

CREATE VIEW IF NOT EXISTS {database}.audio_segments AS
SELECT
    session_id, first_seq, last_seq, status, object_key, size_bytes, md5, duration_ms, gaps, attempts, error,
    fromUnixTimestamp64Milli(updated_ms, 'UTC') AS updated_at,
    source_partition, first_offset, last_offset
FROM {database}.audio_segments_rows FINAL;
