-- How far each stream has come, and what it could not take.

-- The version packs (epoch, offset, checked_ms) by rank, so that a stalled owner's late row loses to a newer one.
CREATE TABLE IF NOT EXISTS {database}.stream_progress_rows
(
    stream LowCardinality(String),
    topic LowCardinality(String),
    partition UInt16,
    partitions UInt16,
    epoch UInt16,
    offset UInt64,
    end_offset UInt64,
    append_ms Int64,
    current Bool,
    checked_ms Int64,
    late UInt64,
    dead UInt64,
    version UInt128 MATERIALIZED
        bitShiftLeft(toUInt128(epoch), 112) + bitShiftLeft(toUInt128(offset), 48) + toUInt128(checked_ms)
)
ENGINE = ReplacingMergeTree(version)
ORDER BY (stream, topic, partition);

-- `reached` is the time up to which every append of the partition is read: that of its last record, or the time of the
-- check for a partition read to its end. `complete_until` ends the last hour that all partitions of the stream have
-- passed; it is NULL while one of them has never reported.
CREATE VIEW IF NOT EXISTS {database}.stream_progress AS
SELECT
    stream, topic, partition, epoch, offset, end_offset, append_ms, current, late, dead,
    fromUnixTimestamp64Milli(checked_ms, 'UTC') AS checked_at,
    fromUnixTimestamp64Milli(reached_ms, 'UTC') AS reached,
    if(
        min(reported) OVER (PARTITION BY stream),
        toStartOfHour(toDateTime(intDiv(min(reached_ms) OVER (PARTITION BY stream), 1000), 'UTC')),
        NULL
    ) AS complete_until
FROM
(
    SELECT
        *,
        if(current, greatest(append_ms, checked_ms), append_ms) AS reached_ms,
        count() OVER (PARTITION BY stream, topic) >= partitions AS reported
    FROM {database}.stream_progress_rows FINAL
);

-- The append time tells records of a topic made again from those that had the same offset before.
CREATE TABLE IF NOT EXISTS {database}.deadletters_rows
(
    stream LowCardinality(String),
    source_topic LowCardinality(String),
    source_partition UInt16,
    source_offset UInt64,
    append_ms Int64,
    reason LowCardinality(String),
    error String,
    producer LowCardinality(String),
    size_bytes UInt64,
    object_key String
)
ENGINE = ReplacingMergeTree
ORDER BY (stream, source_topic, source_partition, source_offset, append_ms);

CREATE VIEW IF NOT EXISTS {database}.deadletters AS
SELECT
    stream, source_topic, source_partition, source_offset, reason, error, producer, size_bytes, object_key,
    fromUnixTimestamp64Milli(append_ms, 'UTC') AS appended_at
FROM {database}.deadletters_rows FINAL;
