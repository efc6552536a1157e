-- Bytes of a partition stay at 2^63 - 1; those of several may add up to more than fits, and stay at 2^64 - 1.
-- Columns are qualified because an alias would otherwise hide the column it is computed from. Response times are NULL
-- where no event of the group had one.
CREATE OR REPLACE VIEW {database}.path_stats_hourly AS
SELECT
    p.hour AS hour,
    p.path AS path,
    p.method AS method,
    p.status_class AS status_class,
    p.dimensions AS dimensions,
    sum(p.requests) AS requests,
    sum(p.errors) AS errors,
    toUInt64(least(sum(toUInt128(p.bytes)), toUInt128(18446744073709551615))) AS bytes,
    if(sum(p.timed) = 0, NULL, sum(p.response_time_us) / sum(p.timed) / 1000) AS avg_response_time_ms,
    if(sum(p.timed) = 0, NULL, quantilesTDigestMerge(0.5, 0.95, 0.99)(p.response_time)[1]) AS p50_response_time_ms,
    if(sum(p.timed) = 0, NULL, quantilesTDigestMerge(0.5, 0.95, 0.99)(p.response_time)[2]) AS p95_response_time_ms,
    if(sum(p.timed) = 0, NULL, quantilesTDigestMerge(0.5, 0.95, 0.99)(p.response_time)[3]) AS p99_response_time_ms,
    if(sum(p.timed) = 0, NULL, max(p.max_response_time_us) / 1000) AS max_response_time_ms,
    uniqMerge(p.visitors) AS unique_ips
FROM {database}.path_stats_hourly_partials AS p
GROUP BY p.hour, p.path, p.method, p.status_class, p.dimensions;
