-- AI tasks: the latest state of each, by id. The newest version replaces the others, so the table has no partitions: rows of
-- one id must meet in one. Rows stay when the stream has forgotten their tasks.

CREATE TABLE IF NOT EXISTS {database}.ai_tasks_rows
(
    task_id String,
    version UInt64,
    user String,
    task_type LowCardinality(String),
    template LowCardinality(String),
    language LowCardinality(String),
    model LowCardinality(String),
    status LowCardinality(String),
    error_type LowCardinality(String),
    error String,
    question String,
    result String,
    reasoning String,
    segments UInt32,
    batch UInt64,
    attempts UInt32,
    calls UInt32,
    retries UInt32,
    lost_calls UInt32,
    prompt_tokens UInt64,
    completion_tokens UInt64,
    cost_micros UInt64,
    submitted_ms Int64,
    accepted_ms Int64,
    started_ms Nullable(Int64),
    finished_ms Nullable(Int64),
    updated_ms Int64,
    webhook LowCardinality(String),
    producer LowCardinality(String),
    processed_by LowCardinality(String),
    source_partition UInt16,
    source_offset UInt64
)
ENGINE = ReplacingMergeTree(version)
ORDER BY task_id;

CREATE VIEW IF NOT EXISTS {database}.ai_tasks AS
SELECT
    task_id, user, task_type, template, language, model, status, error_type, error, question, result, reasoning,
    segments, batch, attempts, calls, retries, lost_calls, prompt_tokens, completion_tokens, cost_micros / 1000000 AS cost,
    fromUnixTimestamp64Milli(submitted_ms, 'UTC') AS submitted_at,
    fromUnixTimestamp64Milli(accepted_ms, 'UTC') AS accepted_at,
    fromUnixTimestamp64Milli(started_ms, 'UTC') AS started_at,
    fromUnixTimestamp64Milli(finished_ms, 'UTC') AS finished_at,
    fromUnixTimestamp64Milli(updated_ms, 'UTC') AS updated_at,
    finished_ms - accepted_ms AS duration_ms,
    webhook, producer, processed_by, source_partition, source_offset
FROM {database}.ai_tasks_rows FINAL;
