-- File jobs: the latest state of each, by id. The newest version replaces the others, so the table has no partitions: rows of
-- one id must meet in one. Rows stay when the stream has forgotten their jobs.

CREATE TABLE IF NOT EXISTS {database}.file_jobs_rows
(
    job_id String,
    version UInt64,
    user String,
    status LowCardinality(String),
    progress UInt8,
    error_type LowCardinality(String),
    error String,
    format LowCardinality(String),
    quality LowCardinality(String),
    source_key String,
    source_url String,
    source_bytes UInt64,
    r2_key String,
    size_bytes UInt64,
    checksum String,
    duration_ms UInt64,
    parts UInt32,
    attempts UInt32,
    lost_attempts UInt32,
    prepare_ms UInt64,
    convert_ms UInt64,
    verify_ms UInt64,
    submitted_ms Int64,
    accepted_ms Int64,
    started_ms Nullable(Int64),
    finished_ms Nullable(Int64),
    updated_ms Int64,
    producer LowCardinality(String),
    source_partition UInt16,
    source_offset UInt64
)
ENGINE = ReplacingMergeTree(version)
ORDER BY job_id;

CREATE VIEW IF NOT EXISTS {database}.file_jobs AS
SELECT
    job_id, user, status, progress, error_type, error, format, quality, source_key, source_url, source_bytes,
    r2_key, size_bytes, checksum, duration_ms, parts, attempts, lost_attempts, prepare_ms, convert_ms, verify_ms,
    fromUnixTimestamp64Milli(submitted_ms, 'UTC') AS submitted_at,
    fromUnixTimestamp64Milli(accepted_ms, 'UTC') AS accepted_at,
    fromUnixTimestamp64Milli(started_ms, 'UTC') AS started_at,
    fromUnixTimestamp64Milli(finished_ms, 'UTC') AS finished_at,
    fromUnixTimestamp64Milli(updated_ms, 'UTC') AS updated_at,
    finished_ms - accepted_ms AS took_ms,
    producer, source_partition, source_offset
FROM {database}.file_jobs_rows FINAL;
