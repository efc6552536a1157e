"""What `sluiceway status` says of AI tasks and of file jobs."""

from __future__ import annotations

from prometheus_client import CollectorRegistry

from compose.commands.status import tasks_of
from compose.files_figures import gateway_line, own_section
from compose.files_status import jobs_of
from streams.web.metrics import FileMetrics


def test_ai_tasks_are_summed_over_partitions() -> None:
    parts = [
        {
            "figures": {
                "tasks_pending": 2.0,
                "tasks_processing": 1.0,
                "outcome_completed": 1_200.0,
                "outcome_calls": 1_300.0,
            }
        },
        {"figures": {"tasks_pending": 1.0, "outcome_failed": 4.0, "outcome_retries": 9.0, "outcome_lost_calls": 3.0}},
        {"figures": {}},
    ]
    assert tasks_of(parts) == (
        "ai: tasks 3 pending, 1 processing; 1,200 completed, 4 failed, 0 cancelled, 1,300 calls, 9 retries, 3 lost calls"
    )


def test_file_jobs_are_summed_over_partitions_and_by_the_size_of_their_results() -> None:
    parts = [
        {
            "figures": {
                "attempts_running": 2.0,
                "jobs_waiting": 7.0,
                "outcome_completed": 3.0,
                "outcome_presigns_passed": 5.0,
                "outcome_uploads_passed": 3.0,
                "outcome_uploads_failed": 1.0,
                "outcome_results_under_10mb": 2.0,
                "prepare_under_10mb_ms": 30.0,
                "convert_under_10mb_ms": 4_000.0,
                "verify_under_10mb_ms": 20.0,
            }
        },
        {"figures": {"outcome_failed": 1.0, "outcome_results_over_100mb": 1.0, "convert_over_100mb_ms": 61_000.0}},
    ]
    workers = [{"cpu_s": 1.5, "rss_bytes": 90_000_000}, {"cpu_s": 2.0, "rss_bytes": 110_000_000}]
    assert jobs_of(parts, workers) == [
        "files: jobs 2 converting, 7 waiting; 3 completed, 1 failed, 0 cancelled; "
        "passed of presigns 100.0% of 5, uploads 75.0% of 4, verifications none",
        "files: 2 results of < 10 MB, on average prepare 15 ms, convert 2,000 ms, verify 10 ms",
        "files: 1 results of > 100 MB, on average prepare 0 ms, convert 61,000 ms, verify 0 ms",
        "files: 2 coordinators with 3.5 s of CPU and 200 MB of memory",
    ]


def test_of_files_a_gateway_tells_what_it_has_signed_and_found() -> None:
    registry = CollectorRegistry()
    counted = FileMetrics(registry)
    nothing = "gateway: presigned URLs signed none; direct uploads 0 begun, stored in the end none"
    assert gateway_line(own_section(registry)) == nothing
    counted.presigns.labels("signed").inc(1_999)
    counted.presigns.labels("failed").inc()
    counted.uploads.labels("begun").inc(5)
    counted.uploads.labels("stored").inc(3)
    counted.uploads.labels("mismatch").inc()
    assert gateway_line(own_section(registry)) == (
        "gateway: presigned URLs signed 99.9% of 2,000; direct uploads 5 begun, stored in the end 75.0% of 4"
    )
