"""Kafka and ClickHouse go away and come back: what was promised holds, what was not is waited for, in bounded memory."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest

from tests.chaos.driver import Run, made_up
from tests.chaos.truth import Truth
from tests.faults import FaultProxy

pytestmark = pytest.mark.stack

MB = 1 << 20


@pytest.mark.parametrize("crash", [True, pytest.param(False, marks=pytest.mark.long)], ids=["killed", "stopped"])
def test_kafka_restarts_under_load(new_run: Callable[..., Run], scale: int, crash: bool) -> None:
    run = new_run()
    records = made_up(seed=41, count=40_000 * scale)
    kafka = run.stack.kafka
    run.worker()
    with run.feeder(records, rate_s=3_000 * scale) as feeder:
        run.until(lambda: min(run.source.committed()) > 500, "under load")
        under_load = not feeder.done
        kafka.kill() if crash else kafka.stop()
        kafka.start()
        feeder.finish()
    run.wait_drained()
    run.assert_exact(Truth(records))
    run.assert_committed()
    assert under_load
    run.report(f"Kafka {'killed' if crash else 'stopped'}", events=len(records))


def test_clickhouse_refuses(new_run: Callable[..., Run], scale: int) -> None:
    records, seconds = made_up(seed=42, count=60_000 * scale), 4 * scale
    run = new_run(flush_rows=4_000)
    with FaultProxy(run.stack.clickhouse.port) as proxy:
        worker = run.worker(clickhouse_url=proxy.url)
        with run.feeder(records, rate_s=2_000 * scale) as feeder:
            run.until(lambda: min(run.source.committed()) > 500, "under load")
            proxy.refuse()
            run.until(lambda: not worker.status()["sink_available"], "the worker noticed")
            held, before = run.source.committed(), worker.rss_bytes
            feeder.finish()
            peak = _peak_rss(run, seconds)
            assert run.source.committed() == held, "offsets moved although nothing could be stored"
            proxy.serve()
        waited = run.wait_drained()
        run.assert_exact(Truth(records))
    assert worker.codes == [], "a sink that is away is waited for"
    assert peak - before < 300 * MB
    figures = {"rss_mb": before // MB, "rss_mb_peak": peak // MB, "caught_up_s": round(waited, 1)}
    run.report("ClickHouse refused", events=len(records), refused_s=seconds, **figures)


def _peak_rss(run: Run, seconds: float) -> int:
    (worker,) = run.workers
    started, peak = time.monotonic(), 0

    def over() -> bool:
        nonlocal peak
        peak = max(peak, worker.rss_bytes)
        return time.monotonic() - started > seconds

    run.until(over, "the outage is over")
    return peak


def test_clickhouse_loses_answers_of_inserts_it_stored(new_run: Callable[..., Run], scale: int) -> None:
    records = made_up(seed=43, count=40_000 * scale)
    run = new_run()
    with FaultProxy(run.stack.clickhouse.port) as proxy:
        worker = run.worker(clickhouse_url=proxy.url)
        with run.feeder(records, rate_s=3_000 * scale) as feeder:
            for table in (b"traffic_events_rows", b"path_stats_hourly_rows", b"stream_progress_rows"):
                run.until(lambda: min(run.source.committed()) > 0, "under load")
                done = proxy.cuts + 4
                proxy.cut_answers(times=4, marker=table)
                run.until(lambda n=done: proxy.cuts >= n, f"4 answers to inserts into {table.decode()} were cut")  # type: ignore[misc]
            feeder.finish()
        run.wait_drained()
        run.assert_exact(Truth(records))
        assert worker.codes == []
        run.report("answers cut", events=len(records), cuts=proxy.cuts)
