"""Celery: a task a call of the model, streamed as the other side does, its queue and its results in Redis, nothing lost when
a worker dies (late acknowledgement).

Arguments: REDIS_URL MODEL_URL MODEL MESSAGES CONCURRENCY; MESSAGES is a file with a JSON array, the messages of each task.
`python celery_tasks.py work ...` is its worker, which the program starts itself.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import redis
from celery import Celery
from openai import OpenAI

REDIS, MODEL_URL, MODEL, MESSAGES, CONCURRENCY = sys.argv[-5:]
#: Threads, whose calls wait side by side. On two cores gevent was 6 % faster, 64 processes 30 % slower.
POOL = "threads"

app = Celery("bench", broker=REDIS, backend=REDIS)
app.conf.update(
    task_acks_late=True,
    worker_prefetch_multiplier=1,
    broker_connection_retry_on_startup=True,
    result_expires=3600,
    worker_hijack_root_logger=False,
)
client = OpenAI(api_key="none", base_url=MODEL_URL, max_retries=0, timeout=300)


@app.task(name="answer")
def answer(messages: list[Any]) -> str:
    """The model's answer, read as it streams."""
    stream = client.chat.completions.create(
        model=MODEL, messages=messages, stream=True, stream_options={"include_usage": True}
    )
    return "".join(chunk.choices[0].delta.content or "" for chunk in stream if chunk.choices)


def work() -> None:
    """Be the worker."""
    app.worker_main(["worker", "-P", POOL, "-c", CONCURRENCY, "-l", "ERROR", "--without-gossip", "--without-mingle"])


def measure() -> None:
    """Be the client: submit all at once, and wait until all results are there."""
    tasks = json.loads(Path(MESSAGES).read_text())
    worker = subprocess.Popen([sys.executable, __file__, "work", *sys.argv[-5:]])
    try:
        warm = [answer.delay(messages) for messages in tasks[: int(CONCURRENCY)]]
        for result in warm:
            result.get(timeout=60)
            result.forget()
        cpu_s, started = _cpu_s(worker.pid), time.monotonic()
        results = [answer.delay(messages) for messages in tasks]
        _wait(len(tasks))
        seconds = time.monotonic() - started
        cpu_s = _cpu_s(worker.pid) - cpu_s
        found = [result.get(timeout=60) for result in results]
        counted = sum(messages[-1]["content"] in text for messages, text in zip(tasks, found, strict=True))
        peak = _status(worker.pid, "VmHWM") * 1024
    finally:
        worker.kill()
        worker.wait()
    line = {"events": len(tasks), "counted": counted, "seconds": seconds, "cpu_s": cpu_s, "rss_peak_bytes": peak}
    print(json.dumps(line), flush=True)


def _wait(count: int) -> None:
    """Until so many results are in Redis, asked for in the way that costs it least."""
    server: Any = redis.Redis.from_url(REDIS)
    deadline = time.monotonic() + 200
    while server.dbsize() < count or sum(1 for _ in server.scan_iter("celery-task-meta-*", 5_000)) < count:
        assert time.monotonic() < deadline, "not all results came"
        time.sleep(0.02)


def _cpu_s(pid: int) -> float:
    user, system = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11:13]
    return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")


def _status(pid: int, name: str) -> int:
    line = next(line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith(name))
    return int(line.split()[1])


if __name__ == "__main__":
    work() if sys.argv[1] == "work" else measure()
