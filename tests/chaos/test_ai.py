"""AI tasks under faults: workers die, freeze and come and go, Kafka restarts, and the model misbehaves in every way."""

from __future__ import annotations

import random
import signal
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from compose.local.stack import LocalStack
from streams.ai.rules import AiRules
from tests.aistack import PARTITIONS, Run, Told, ai_run
from topics import specs
from topics.ai_events import AttemptStarted, TaskFailed

pytestmark = [pytest.mark.stack, pytest.mark.slow]

#: Where the first worker is killed: around the calls of the model, and around the commits that carry their outcomes.
FAULTS = (
    "call.before=kill@9",
    "call.during=kill@25",
    "call.after=kill@6",
    "send.after=kill@14",
    "commit.after=kill@14",
)
LONG = "A sentence that is one of very many and says nothing at all. " * 40


@dataclass(frozen=True)
class Kind:
    """How the model treats a task, and how it then ends: completed, cancelled, or failed for one of `reasons`."""

    rule: dict[str, Any]
    reasons: tuple[str, ...] = ()
    model: str | None = None
    requests: int = 1  # of the model's endpoint, for one attempt
    status: str = "completed"


TIMEOUT = ("deadline_exceeded",)
LOST = "lost_too_often"
LATE = "(and its retry would come after the deadline)"
KINDS = {
    "fine": Kind({}),
    "slow": Kind({"answer_ms": 3_000}),
    "limited": Kind({"fault": "429", "times": 1, "retry_after_s": 0.3}),
    "erring": Kind({"fault": "500", "times": 2}),
    "cut": Kind({"fault": "cut", "times": 1}),
    "broken": Kind({"fault": "broken", "times": 2}),
    "broken_first": Kind({"fault": "broken_first", "times": 1}, requests=2),
    "cut_first": Kind({"fault": "cut_first", "times": 1}, requests=2),
    "ended": Kind({"fault": "ended", "times": 1}),
    "told": Kind({"fault": "told", "times": 1}),
    "plain": Kind({}, model="stand-in-plain", requests=2),
    "unstreamed": Kind({}, model="stand-in-unstreamed"),
    "long": Kind({"call": 1, "fault": "503", "times": 1}),
    "refused": Kind({"fault": "400"}, ("bad_request",), requests=2, status="failed"),
    "dead": Kind({"fault": "500"}, ("server_error",), status="failed"),
    "hung": Kind({"fault": "hang"}, (*TIMEOUT, LOST), status="failed"),
    "stalled": Kind({"fault": "stall"}, (*TIMEOUT, LOST), status="failed"),
    # Where Kafka is away for long, its time may be over before anybody can say that it is not wanted.
    "unwanted": Kind({"answer_ms": 120_000}, TIMEOUT, status="cancelled"),
}


TO_THE_END = ("hung", "stalled")


class Crowd:
    """Tasks of all kinds in an order from a seed, and the model's rules for each."""

    def __init__(self, run: Run, count: int, seed: int) -> None:
        self._run = run
        names = [name for name in KINDS if name not in TO_THE_END]
        others = [(f"{names[n % len(names)]}-{n}", names[n % len(names)]) for n in range(count)]
        random.Random(seed).shuffle(others)
        # Each holds a slot for all of its time: they begin first, and few of them.
        longest = [(f"{name}-{n}", name) for n in range(max(1, count // 120)) for name in TO_THE_END]
        self.kinds = dict(longest + others)
        self.waiting = list(self.kinds)
        run.rules(*({"task": task, **KINDS[kind].rule} for task, kind in self.kinds.items() if KINDS[kind].rule))

    def submit(self, count: int) -> None:
        """Submit the next ones, some of them twice."""
        for task_id in self.waiting[:count]:
            kind = self.kinds[task_id]
            question = LONG + task_id if kind == "long" else ""
            for _ in range(1 + (len(task_id) % 3 == 0)):
                self._run.submitter.submit(task_id, question, user=f"user {len(task_id) % 5}", model=KINDS[kind].model)
        del self.waiting[:count]
        self._run.submitter.flush()

    def cancel_begun(self) -> None:
        """Cancel those that are not wanted and are under way."""
        for task_id, told in self._run.told().items():
            begun = any(isinstance(event, AttemptStarted) for event in told.events)
            if self.kinds[task_id] == "unwanted" and begun and told.end is None:
                self._run.submitter.cancel(task_id)
        self._run.submitter.flush()

    def assert_ended(self) -> Counter[str]:
        """Every task ended once, as its kind has it, after no more calls than that takes; what it came to in figures."""
        run = self._run
        run.assert_told_soundly()
        told, calls = run.told(), run.calls()
        assert set(told) == set(self.kinds)
        figures: Counter[str] = Counter(tasks=len(told), events=sum(len(task.events) for task in told.values()))
        for task_id, kind in self.kinds.items():
            end = told[task_id].end
            if isinstance(end, TaskFailed):
                late = end.error_type in (*TIMEOUT, LOST) or end.error.endswith(LATE)
                assert end.error_type != LOST or end.figures.lost_calls > AiRules.lost_max
                assert end.error_type in KINDS[kind].reasons or late, end
                figures["failed"] += 1
                if end.error_type not in KINDS[kind].reasons:
                    figures["out_of_time"] += 1
                    print(f"chaos: ai: out of time: {end}")
            else:
                assert type(end).__name__ == f"Task{KINDS[kind].status.capitalize()}", f"{task_id} ended as {end}"
                figures["cancelled"] += KINDS[kind].status == "cancelled"
            figures += self._assert_calls(task_id, told[task_id], calls)
        letters = Counter(
            (key.decode(), headers["reason"].decode()) for key, _, headers in run.read(specs.AI_DEADLETTER)
        )
        ends = {task_id: task.end for task_id, task in told.items()}
        had_to = {(task_id, end.error_type) for task_id, end in ends.items() if isinstance(end, TaskFailed)}
        assert set(letters) == had_to and set(letters.values()) == {1}, "dead letters are the failed tasks, each once"
        assert figures["cancelled"] > 0
        return figures

    def _assert_calls(self, task_id: str, told: Told, calls: dict[str, dict[str, Any]]) -> Counter[str]:
        """Each call was begun as often as it was tried again or lost, and the model asked no more often."""
        kind, figures = KINDS[self.kinds[task_id]], Counter[str]()
        last = max((int(name.split("/")[1]) for name in calls if name.split("/")[0] == task_id), default=0)
        for segment in {event.segment for event in told.events if isinstance(event, AttemptStarted)}:
            attempts, void = told.attempts(segment), told.voided(segment)
            lost, retries = void["lost"], void.total() - void["lost"]
            assert retries <= self._run.settings.ai_retries
            assert attempts <= 1 + retries + lost, f"{task_id}: {segment}"
            called = calls.get(f"{task_id}/{last if segment is None else segment}", {"requests": 0, "answered": 0})
            assert called["requests"] <= attempts * kind.requests, f"{task_id}: {called} for {attempts} attempts"
            assert kind.status != "cancelled" or called["answered"] == 0
            figures += Counter(calls=attempts, lost_calls=lost, retries=retries)
        return figures

    def assert_rows(self) -> None:
        """ClickHouse has them all as they ended."""
        told = self._run.told()
        truth = {task_id: type(told[task_id].end).__name__.removeprefix("Task").lower() for task_id in self.kinds}
        query = "SELECT task_id, status FROM ai_tasks"
        self._run.until(lambda: {str(task): status for task, status in self._run.rows(query)} == truth, "rows are true")
        results = {
            str(task_id): result
            for task_id, result in self._run.rows("SELECT task_id, result FROM ai_tasks WHERE status = 'completed'")
        }
        assert results == {task_id: getattr(told[task_id].end, "result", None) for task_id in results}


def _pause(run: Run, seconds: float) -> None:
    over = time.monotonic() + seconds
    run.until(lambda: time.monotonic() > over, "the pause is over")


def _freeze(run: Run) -> None:
    """The second worker loses its partitions while it is frozen, and then goes on as if it had them."""
    frozen = run.workers[1]
    if frozen.running:
        frozen.signal(signal.SIGSTOP)
        run.until(lambda: run.worker.owns() == set(range(run.settings.partitions)), "the other one owns all")
        frozen.signal(signal.SIGCONT)


def _kill(run: Run, number: int) -> None:
    if run.workers[number].running:
        run.workers[number].signal(signal.SIGKILL)


def _restart_kafka(run: Run) -> None:
    run.stack.kafka.kill()
    run.stack.kafka.start()


def _drain(run: Run) -> None:
    if run.workers[1].running:
        run.workers[1].signal(signal.SIGTERM)


def _through(run: Run, crowd: Crowd, accidents: list[Callable[[], None]], deadline_s: float) -> None:
    """Submit the crowd in as many parts as there are accidents, one after each part; then wait for the ends of all."""
    part = -(-len(crowd.waiting) // len(accidents))
    for accident in accidents:
        crowd.submit(part)
        _pause(run, 1.0)
        crowd.cancel_begun()
        accident()

    def over() -> bool:
        crowd.cancel_begun()
        return run.ended() == set(crowd.kinds)

    run.until(over, "all have ended", deadline_s)


def _chaos_run(stack: LocalStack, folder: Path, **settings: Any) -> Any:
    models = "stand-in-plain,stand-in-unstreamed"
    return ai_run(stack, folder, workers=2, ai_models=models, **settings)


def _assert_all(run: Run, crowd: Crowd, out_of_time: int) -> None:
    """The outcome is as it must be, for all but so many tasks whose time the accidents took."""
    figures = crowd.assert_ended()
    crowd.assert_rows()
    codes = [Counter(worker.codes) for worker in run.workers]
    print(f"chaos: ai: {dict(figures)}, fired={sorted(run.worker.fired())}, {codes=}")
    assert figures["lost_calls"] > 0 and run.worker.fired() == run.worker.planned()
    assert figures["out_of_time"] <= out_of_time


def test_every_task_ends_once(stack: LocalStack, tmp_path: Path) -> None:
    faults = "call.during=kill@20,commit.after=kill@12"
    with _chaos_run(stack, tmp_path, faults=faults, ai_deadline_s=16.0, partitions=PARTITIONS) as run:
        crowd = Crowd(run, 60, seed=7)
        _through(run, crowd, [lambda: _freeze(run), lambda: _drain(run), lambda: _restart_kafka(run)], 120)
        _assert_all(run, crowd, out_of_time=0)


@pytest.mark.long
def test_five_hundred_tasks_end_once(stack: LocalStack, tmp_path: Path) -> None:
    faults = ",".join(FAULTS)
    with _chaos_run(stack, tmp_path, faults=faults, ai_deadline_s=45.0, ai_concurrency=64, partitions=4) as run:
        crowd, chance = Crowd(run, 492, seed=11), random.Random(11)
        accidents = {
            lambda: _kill(run, chance.randrange(2)): 4,
            lambda: _freeze(run): 4,
            lambda: _drain(run): 3,
            lambda: _restart_kafka(run): 2,
        }
        storm = chance.choices(list(accidents), list(accidents.values()), k=16)
        _through(run, crowd, [*storm, *accidents], 400)
        _assert_all(run, crowd, out_of_time=5)
