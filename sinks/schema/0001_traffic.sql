-- Traffic: raw events and hourly partial rollups, each with the view that analysts read.
-- Writing a row again replaces it, so every view reads FINAL: it counts rightly whether or not parts have merged.
-- `{database}` is replaced by the configured database. Every statement may run twice.

-- The hour comes first so that a time range reads few granules. Coordinates alone are not an identity: a topic made
-- again starts at offset 0, so the record's own id stands beside them. Same row, same day: partitions never share a key.
CREATE TABLE IF NOT EXISTS {database}.traffic_events_rows
(
    event_id String,
    timestamp_ms Int64,
    timestamp DateTime64(3, 'UTC') DEFAULT fromUnixTimestamp64Milli(timestamp_ms, 'UTC'),
    method LowCardinality(String),
    path String,
    status UInt16,
    client_ip String,
    response_time_ms Nullable(Float64),
    bytes Nullable(UInt64),
    user_agent LowCardinality(Nullable(String)),
    dimensions Map(String, String),
    producer LowCardinality(String),
    source_partition UInt16,
    source_offset UInt64,
    append_ms Int64
)
ENGINE = ReplacingMergeTree
PARTITION BY toYYYYMMDD(timestamp)
ORDER BY (toStartOfHour(timestamp), source_partition, source_offset, event_id)
SETTINGS ttl_only_drop_parts = 1;

CREATE VIEW IF NOT EXISTS {database}.traffic_events AS
SELECT
    event_id, timestamp, timestamp_ms, method, path, status, client_ip, response_time_ms, bytes, user_agent,
    dimensions, producer, source_partition, source_offset, append_ms
FROM {database}.traffic_events_rows FINAL
SETTINGS do_not_merge_across_partitions_select_final = 1;

CREATE TABLE IF NOT EXISTS {database}.path_stats_hourly_rows
(
    hour DateTime('UTC'),
    path String,
    method LowCardinality(String),
    status_class LowCardinality(String),
    dimensions Map(String, String),
    source_topic LowCardinality(String),
    source_partition UInt16,
    version UInt64,
    requests UInt64,
    errors UInt64,
    bytes UInt64,
    response_time_us UInt64,
    timed UInt64,
    max_response_time_us UInt64,
    visitors AggregateFunction(uniq, String),
    response_time AggregateFunction(quantilesTDigest(0.5, 0.95, 0.99), Float32)
)
ENGINE = ReplacingMergeTree(version)
PARTITION BY toYYYYMM(hour)
ORDER BY (hour, path, method, status_class, dimensions, source_topic, source_partition);

-- A row without requests withdraws its key: a rebuild under other rules leaves such rows where the old keys were.
CREATE VIEW IF NOT EXISTS {database}.path_stats_hourly_partials AS
SELECT
    hour, path, method, status_class, dimensions, source_topic, source_partition, version,
    requests, errors, bytes, response_time_us, timed, max_response_time_us, visitors, response_time
FROM {database}.path_stats_hourly_rows FINAL
WHERE requests > 0
SETTINGS do_not_merge_across_partitions_select_final = 1;

-- Columns are qualified because an alias would otherwise hide the column it is computed from. Response times are NULL
-- where no event of the group had one.
CREATE VIEW IF NOT EXISTS {database}.path_stats_hourly AS
SELECT
    p.hour AS hour,
    p.path AS path,
    p.method AS method,
    p.status_class AS status_class,
    p.dimensions AS dimensions,
    sum(p.requests) AS requests,
    sum(p.errors) AS errors,
    sum(p.bytes) AS bytes,
    if(sum(p.timed) = 0, NULL, sum(p.response_time_us) / sum(p.timed) / 1000) AS avg_response_time_ms,
    if(sum(p.timed) = 0, NULL, quantilesTDigestMerge(0.5, 0.95, 0.99)(p.response_time)[1]) AS p50_response_time_ms,
    if(sum(p.timed) = 0, NULL, quantilesTDigestMerge(0.5, 0.95, 0.99)(p.response_time)[2]) AS p95_response_time_ms,
    if(sum(p.timed) = 0, NULL, quantilesTDigestMerge(0.5, 0.95, 0.99)(p.response_time)[3]) AS p99_response_time_ms,
    if(sum(p.timed) = 0, NULL, max(p.max_response_time_us) / 1000) AS max_response_time_ms,
    uniqMerge(p.visitors) AS unique_ips
FROM {database}.path_stats_hourly_partials AS p
GROUP BY p.hour, p.path, p.method, p.status_class, p.dimensions;
