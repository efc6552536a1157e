"""The status pages' figures, from what several partitions say of their queues."""

from __future__ import annotations

from typing import Any

import jsonschema

from streams.web.ai.status import ai_status, endpoints, queue_status


def queue(**figures: Any) -> dict[str, Any]:
    """A partition's figures, as its owner gives them."""
    none = ("pending", "processing", "finished_last_minute", "submitted", "completed", "failed", "cancelled", "calls")
    empty = dict.fromkeys((*none, "retries", "lost_calls", "dead_letters"), 0)
    return {**empty, "oldest_pending_ms": None, "errors": {}, "durations_ms": [], "models": {}, **figures}


def test_figures_of_all_partitions_are_put_together() -> None:
    one = queue(pending=2, submitted=8, completed=3, failed=1, calls=8, retries=2, oldest_pending_ms=50, dead_letters=1)
    two = queue(processing=1, submitted=7, completed=5, cancelled=1, calls=8, retries=0, finished_last_minute=4)
    one |= {"durations_ms": [100] * 19, "errors": {"rate_limited": 2}}
    two |= {"durations_ms": [1_100], "errors": {"rate_limited": 1, "server_error": 1}}
    told = queue_status([one, two])
    assert told == {
        "queueDepth": 2,
        "processing": 1,
        "oldestPendingMs": 50,
        "processedPerMinute": 4,
        "submitted": 15,
        "completed": 8,
        "failed": 1,
        "cancelled": 1,
        "completionRate": 0.8,
        "failureRate": 0.1,
        "retryRate": 0.125,
        "deadLetters": 1,
        "meanProcessingMs": 150.0,
        "p95ProcessingMs": 100,
        "errorTypes": {"rate_limited": 3, "server_error": 1},
    }
    about = {"status": "healthy", "service": "s", "queue": "q"}
    jsonschema.validate({**about, **told}, endpoints.schemas["QueueStatus"])


def test_an_empty_queue_has_no_rates() -> None:
    told = queue_status([queue()])
    rates = ("completionRate", "failureRate", "retryRate", "meanProcessingMs", "p95ProcessingMs", "oldestPendingMs")
    assert {told[name] for name in rates} == {None} and told["queueDepth"] == 0


def test_models_are_shown_whether_called_or_not() -> None:
    one = queue(models={"a": {"running": 1, "waiting": 3, "mean_call_ms": 100}}, calls=4, lost_calls=1)
    two = queue(models={"a": {"running": 2, "waiting": 0, "mean_call_ms": 200}}, calls=1)
    told = ai_status([one, two], ["a", "b"])
    assert told == {
        "models": {
            "a": {"running": 3, "waiting": 3, "meanCallMs": 150.0},
            "b": {"running": 0, "waiting": 0, "meanCallMs": None},
        },
        "calls": 5,
        "retries": 0,
        "lostCalls": 1,
    }
