"""How soon a gateway answers a submit, at a steady rate: each is due at its own moment, whether or not others are answered."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import aiohttp

from compose.bench.ai_tasks import question_of
from compose.bench.result import BenchFailed
from compose.figures import quantile


async def measure_submits(url: str, rate: int, seconds: float, warm_up_s: float, keyed: bool) -> dict[str, Any]:
    """Seconds from the moment at which a submit was due to its 202; `keyed` ones bear an Idempotency-Key, for whose sake the
    gateway asks the task's owner first. Those of the first `warm_up_s` are left out: connections open, code is met for the
    first time. Raises BenchFailed for another answer."""
    async with aiohttp.ClientSession(url, connector=aiohttp.TCPConnector(limit=0)) as session:
        started = time.monotonic() + 0.1
        count = int(rate * (warm_up_s + seconds))
        submits = [_submit(session, number, started + number / rate, keyed) for number in range(count)]
        delays_s = await asyncio.gather(*submits)
    found = sorted(delays_s[int(rate * warm_up_s) :])
    return {
        "measurement": "ai submits",
        "keyed": keyed,
        "rate_per_s": rate,
        "seconds": seconds,
        "submits": len(found),
        "p50_s": round(quantile(found, 0.50), 4),
        "p99_s": round(quantile(found, 0.99), 4),
        "max_s": round(found[-1], 4),
    }


async def _submit(session: aiohttp.ClientSession, number: int, due_s: float, keyed: bool) -> float:
    await asyncio.sleep(due_s - time.monotonic())
    name = f"submit-{number}"
    task = {"task_type": "question", "user": "bench", "language": "English", "question": question_of(name)}
    headers = {"Idempotency-Key": name} if keyed else {}
    async with session.post("/api/tasks", json=task, headers=headers) as answer:
        said = await answer.text()
        if answer.status != 202:
            raise BenchFailed(f"a submit was answered with {answer.status}: {said[:300]}")
    return time.monotonic() - due_s
