"""AI tasks as a service submits them to Kafka, and what is told of them, when a read_committed reader has it."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from confluent_kafka import Consumer, Producer, TopicPartition

from compose.bench.result import BenchFailed
from compose.local.model_http import stand_in_answer
from topics import ai, specs
from topics.ai import Submit
from topics.ai_events import FINAL_EVENTS, TaskCompleted, TaskEvent, decode_event
from topics.malformed import Malformed

#: Nothing was told for so long: nothing will be.
_SILENT_S = 60.0
_QUIET = 2  # syslog's "critical": a broker that stops at the end is no news


def question_of(task_id: str) -> str:
    """What a task asks."""
    return f"What is there to be said of {task_id}?"


class Tasks:
    """Submits, and follows `ai.results.v1` from where it ends now."""

    def __init__(self, bootstrap: str) -> None:
        common = {"bootstrap.servers": bootstrap, "log_level": _QUIET}
        self._producer: Any = Producer({**common, "partitioner": "murmur2_random", "linger.ms": 2})
        self._reader: Any = Consumer(
            {
                **common,
                "group.id": "bench",
                "enable.auto.commit": False,
                "isolation.level": "read_committed",
                "fetch.wait.max.ms": 10,
            }
        )
        partitions = self._reader.list_topics(specs.AI_RESULTS, 10).topics[specs.AI_RESULTS].partitions
        ends = []
        for number in partitions:
            at = TopicPartition(specs.AI_RESULTS, number)
            at.offset = self._reader.get_watermark_offsets(at, 10)[1]
            ends.append(at)
        self._reader.assign(ends)

    def submit(self, task_ids: Iterable[str], model: str | None = None) -> None:
        """Submit tasks, and return once Kafka has them."""
        for task_id in task_ids:
            now_ms = time.time_ns() // 1_000_000
            submit = Submit(
                task_id=task_id,
                task_type="question",
                user="bench",
                language="English",
                question=question_of(task_id),
                submitted_ms=now_ms,
                model=model,
            )
            record = ai.encode(submit)
            self._producer.produce(specs.AI_TASKS, record.value, record.key, headers=list(record.headers))
            self._producer.poll(0)
        if self._producer.flush(30):
            raise BenchFailed("Kafka did not take the tasks")

    def told(self) -> Iterator[tuple[float, TaskEvent]]:
        """Each event with the Unix time at which it was there, endlessly. Raises BenchFailed when nothing comes any more."""
        heard = time.monotonic()
        while True:
            message = self._reader.poll(0.1)
            if message is None or message.error():
                if time.monotonic() - heard > _SILENT_S:
                    raise BenchFailed(f"nothing was told of the tasks for {_SILENT_S:g} s")
                continue
            heard = time.monotonic()
            event = decode_event(message.value())
            if isinstance(event, Malformed):
                raise BenchFailed(f"an event is not to be read: {event.error}")
            yield time.time(), event

    def ends(self, count: int) -> Mapping[str, TaskEvent]:
        """The next `count` final events, by task. Raises BenchFailed if one is of a task that ended before."""
        found: dict[str, TaskEvent] = {}
        for _, event in self.told():
            if isinstance(event, FINAL_EVENTS):
                if event.task_id in found:
                    raise BenchFailed(f"{event.task_id} ended twice")
                found[event.task_id] = event
            if len(found) == count:
                break
        return found

    def close(self) -> None:
        """Let go of the broker."""
        self._reader.close()


def check_answers(ends: Mapping[str, TaskEvent]) -> None:
    """Raise BenchFailed unless each task has the answer of its question."""
    for task_id, end in ends.items():
        if not isinstance(end, TaskCompleted) or end.result != stand_in_answer(question_of(task_id)):
            raise BenchFailed(f"{task_id} ended as {end}")
