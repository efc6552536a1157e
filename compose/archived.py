"""What the owners of AI tasks and file jobs have forgotten, as ClickHouse keeps it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import Any

from sinks.clickhouse.queries import ai_task, file_job
from sinks.clickhouse.sink import ClickHouseSink
from sinks.errors import SinkRefused, SinkUnavailable
from streams.web.owner import ArchiveAway
from topics.files import Status
from topics.files_keys import converted_name

#: How long ClickHouse may take to tell of one.
ARCHIVE_S = 5.0

_Row = dict[str, Any]


class InClickHouse:
    """Implements `streams.web.ai.tasks.TaskArchive` and `streams.web.files.jobs.JobArchive`."""

    def __init__(self, sink: ClickHouseSink) -> None:
        self._sink = sink

    async def task(self, task_id: str) -> _Row | None:
        """See `TaskArchive`."""
        row = await _in_time(ai_task(self._sink, task_id))
        return None if row is None else _task(row)

    async def job(self, job_id: str) -> _Row | None:
        """See `JobArchive`."""
        row = await _in_time(file_job(self._sink, job_id))
        return None if row is None else _job(row)


async def _in_time(asked: Awaitable[_Row | None]) -> _Row | None:
    try:
        async with asyncio.timeout(ARCHIVE_S):
            return await asked
    except (SinkUnavailable, SinkRefused, TimeoutError) as error:
        raise ArchiveAway(f"ClickHouse does not answer ({str(error) or type(error).__name__})") from error


def _task(row: dict[str, Any]) -> dict[str, Any]:
    """A row as the task's owner described it."""
    prompt, completion, cost_micros = (row.pop(n) for n in ("prompt_tokens", "completion_tokens", "cost_micros"))
    error = _error(row)
    return {
        **row,
        "result": row["result"] if row["status"] == "completed" else None,
        "partial": None,
        "error": error,
        "usage": {
            "prompt_tokens": prompt,
            "completion_tokens": completion,
            "total_tokens": prompt + completion,
            "cost": cost_micros / 1_000_000,
        },
    }


def _job(row: _Row) -> _Row:
    """A row as the job's owner described it; without a result its file name is not known."""
    error, done = _error(row), row["status"] == Status.COMPLETED
    of_result = {name: row[name] if done else None for name in ("r2_key", "size_bytes", "checksum", "duration_ms")}
    return {**row, **of_result, "file_name": converted_name(row["r2_key"]) if done else None, "error": error}


def _error(row: _Row) -> _Row | None:
    """What a row says of how it failed, taken out of it."""
    error_type, message = row.pop("error_type"), row.pop("error")
    return {"type": error_type, "message": message} if error_type else None
