"""AI tasks: how many a second, how many more in batches, and how soon a token is there; the stack beside it on two cores."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from itertools import count, islice
from pathlib import Path
from typing import Any

from compose.ai_stream import ai
from compose.bench.ai_submits import measure_submits
from compose.bench.ai_tasks import Tasks, check_answers, question_of
from compose.bench.audio import share_two_cores
from compose.bench.events import make_topics
from compose.bench.gateway import MeasuredGateway
from compose.bench.process import cpu_s
from compose.bench.redis_server import Redis
from compose.bench.result import BenchFailed, Line, Result, Skipped
from compose.bench.systems import CELERY, measure_program
from compose.bench.worker import MeasuredWorker
from compose.clients import clickhouse
from compose.figures import quantile
from compose.local.process import free_port
from compose.local.stack import LocalStack
from compose.settings import Settings
from compose.traffic_stream import traffic
from streams.ai.model_port import Asked, Part
from streams.ai.prompts import ShippedPrompts
from topics.ai_events import FINAL_EVENTS, TaskCompleted, TextWritten
from topics.partitioning import partition_of

PARTITIONS = 4
#: What can be left out.
MORE = ("batches", "celery")
BATCH = 3


@dataclass(frozen=True)
class Plan:
    """What to measure. A model answers in `answer_ms`; one that is slow, or whose tokens are timed, in `slow_ms`."""

    tasks: int = 3_000
    concurrency: int = 64
    answer_ms: int = 100
    slow_ms: int = 2_000
    batches: int = 4
    watched: int = 32
    submits_per_s: int = 200
    seconds: float = 20.0
    warm_up_s: float = 2.0
    tuning: Mapping[str, Any] | None = None

    @property
    def clock_model(self) -> str:
        """The one whose tokens are times."""
        return f"stand-in-clock-{self.slow_ms}ms"

    @property
    def job(self) -> str:
        """What each system does."""
        return f"calls of {self.answer_ms} ms, {self.concurrency} at once"


@contextmanager
def ai_stack(folder: Path) -> Iterator[LocalStack]:
    """The stack on two cores, with everything that starts after it. Raises LocalStackError, TooFewCores."""
    share_two_cores()
    with LocalStack.on_free_ports(folder / "ai") as stack:
        yield stack


@contextmanager
def _worker(stack: LocalStack, plan: Plan, model: str, **settings: Any) -> Iterator[tuple[MeasuredWorker, Tasks]]:
    """A worker that has taken over, and the tasks' way to it."""
    own: Settings = stack.settings(
        **{**(plan.tuning or {}), "ai_model": model, "partitions": PARTITIONS, **settings},
        worker_port=free_port(),
        gateway_port=free_port(),
        log_level="warning",
    )
    # A gateway is ready once it can take traffic too.
    make_topics(own.kafka_bootstrap, [*ai(own, clickhouse(own)).topics, *traffic(own).topics])
    worker = MeasuredWorker(own, None, stack.data_dir / "worker.log", "ai")
    try:
        worker.wait_ready()
        with closing(Tasks(own.kafka_bootstrap)) as tasks:
            yield worker, tasks
    finally:
        worker.stop()


def measure_one_worker(stack: LocalStack, plan: Plan) -> Iterator[dict[str, Any] | Result]:
    """How soon a token is told, and tasks a second."""
    settings = {"ai_models": plan.clock_model, "ai_concurrency": plan.concurrency}
    with _worker(stack, plan, f"stand-in-{plan.answer_ms}ms", **settings) as (worker, tasks):
        warm = [f"warm-{number}" for number in range(plan.concurrency)]
        tasks.submit(warm)
        tasks.ends(len(warm))
        yield _tokens(tasks, plan)
        yield _tasks(stack, worker, tasks, plan)
        yield from _submits(stack, worker.settings, plan)


def _submits(stack: LocalStack, settings: Settings, plan: Plan) -> Iterator[dict[str, Any]]:
    """How soon a gateway answers a submit, while the worker does what is submitted."""
    gateway = MeasuredGateway(settings, stack.data_dir / "gateway.log")
    try:
        gateway.wait_ready()
        for keyed in (False, True):
            yield asyncio.run(measure_submits(gateway.url, plan.submits_per_s, plan.seconds, plan.warm_up_s, keyed))
    finally:
        gateway.stop()


def _tasks(stack: LocalStack, worker: MeasuredWorker, tasks: Tasks, plan: Plan) -> Result:
    """Tasks finished a second, from the first that is submitted to the last answer that is told."""
    pids = {server.name.lower(): server.pid for server in stack.servers if server.pid} | {"worker": worker.pid}
    before, started = {name: cpu_s(pid) for name, pid in pids.items()}, time.monotonic()
    tasks.submit(f"task-{number}" for number in range(plan.tasks))
    ends = tasks.ends(plan.tasks)
    seconds = time.monotonic() - started
    used = {name: cpu_s(pid) - before[name] for name, pid in pids.items()}
    check_answers(ends)
    return Result(
        system="sluiceway",
        job=plan.job,
        events=plan.tasks,
        seconds=seconds,
        cpu_s=used["worker"],
        rss_peak_bytes=worker.rss_peak_bytes(),
        more={"cores": {name: round(value / seconds, 3) for name, value in used.items()}},
    )


def measure_celery(stack: LocalStack, plan: Plan, folder: Path) -> Line:
    """Celery doing the same calls, its queue and its results in Redis; Kafka and ClickHouse are stopped meanwhile."""
    if not Redis.installed():
        return Skipped(CELERY.title, plan.job, "redis-server is not installed; on Debian: apt-get install redis-server")
    assert stack.model is not None
    for server in (stack.kafka, stack.clickhouse, stack.s3):
        server.stop()
    redis = Redis(folder / "redis")
    redis.start()
    try:
        messages = folder / "messages.json"
        messages.write_text(json.dumps([_messages(f"task-{number}") for number in range(plan.tasks)]))
        where = [redis.url, stack.model.url, f"stand-in-{plan.answer_ms}ms"]
        return measure_program(CELERY, [*where, str(messages), str(plan.concurrency)], plan.tasks, job=plan.job)
    finally:
        redis.stop()


def _messages(task_id: str) -> list[dict[str, str]]:
    """What a worker of ours says to the model."""
    asked = Asked(task_type="question", language="English", part=Part.WHOLE, texts=(question_of(task_id),))
    return [message._asdict() for message in ShippedPrompts("stand-in").messages(asked)]


def measure_batches(stack: LocalStack, plan: Plan) -> dict[str, Any]:
    """How much sooner the same tasks of a slow model are done in batches of 3 than one by one, in each partition."""
    of_each = plan.batches * BATCH
    seconds = {}
    for size in (1, BATCH):
        settings = {"ai_batch_size": size, "ai_concurrency": size * PARTITIONS, "ai_eager": False}
        with _worker(stack, plan, f"stand-in-{plan.slow_ms}ms", **settings) as (_, tasks):
            task_ids = list(_spread(f"batch-{size}", of_each))
            started = time.monotonic()
            tasks.submit(task_ids)
            check_answers(tasks.ends(len(task_ids)))
            seconds[size] = time.monotonic() - started
    return {
        "measurement": "ai batches",
        "answer_ms": plan.slow_ms,
        "tasks": of_each * PARTITIONS,
        "one_by_one_s": round(seconds[1], 3),
        f"batches_of_{BATCH}_s": round(seconds[BATCH], 3),
        "times": round(seconds[1] / seconds[BATCH], 2),
    }


def _spread(prefix: str, of_each: int) -> Iterator[str]:
    """Task ids, as many in each partition."""
    for partition in range(PARTITIONS):
        ids = (f"{prefix}-{number}" for number in count())
        yield from islice((i for i in ids if partition_of(i.encode(), PARTITIONS) == partition), of_each)


def _tokens(tasks: Tasks, plan: Plan) -> dict[str, Any]:
    """How soon a token is in `ai.results.v1` after the model has said it: its tokens are the times at which it says them."""
    tasks.submit((f"watched-{number}" for number in range(plan.watched)), plan.clock_model)
    delays_s: list[float] = []
    blocks, left = 0, plan.watched
    for at_s, event in tasks.told():
        if isinstance(event, TextWritten):
            blocks += 1
            delays_s += [at_s - int(word) / 1e6 for word in event.text.split()]
        elif isinstance(event, FINAL_EVENTS):
            if not isinstance(event, TaskCompleted):
                raise BenchFailed(f"a task ended as {event}")
            left -= 1
        if left == 0:
            break
    delays_s.sort()
    return {
        "measurement": "ai tokens",
        "tasks": plan.watched,
        "tokens": len(delays_s),
        "blocks": blocks,
        "p50_s": round(quantile(delays_s, 0.50), 3),
        "p99_s": round(quantile(delays_s, 0.99), 3),
        "max_s": round(delays_s[-1], 3),
    }


def measure(stack: LocalStack, plan: Plan, folder: Path, without: Sequence[str]) -> Iterator[dict[str, Any] | Line]:
    """All of it, but what is named in `without`, each as it is done. Raises BenchFailed."""
    yield from measure_one_worker(stack, plan)
    if "batches" not in without:
        yield measure_batches(stack, plan)
    if "celery" not in without:
        yield measure_celery(stack, plan, folder)
