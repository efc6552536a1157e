"""What `sluiceway status` says of AI tasks."""

from __future__ import annotations

from compose.commands.status import tasks_of


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
