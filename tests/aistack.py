"""AI tasks on the real stack: a producer, workers, the stand-in model, and what came of it in Kafka and ClickHouse."""

from __future__ import annotations

import json
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from confluent_kafka import Producer

from compose.local.model import ModelServer
from compose.local.model_http import stand_in_answer
from compose.local.process import free_port
from compose.local.stack import LocalStack
from streams.ai.fold import MERGE_QUESTION_CHARS
from streams.ai.model_port import Asked, Part
from streams.ai.prompts import ShippedPrompts
from streams.ai.segments import split
from tests import modelserver
from tests.chaos.workers import Worker
from tests.streamrun import StreamRun, emptied, end
from tests.warehouse import new_database
from topics import ai, specs
from topics.ai import Cancel, Kind, Submit, TaskRecord
from topics.ai_events import (
    FINAL_EVENTS,
    AttemptDiscarded,
    AttemptStarted,
    TaskCompleted,
    TaskEvent,
    TextWritten,
    decode_event,
)
from topics.malformed import Malformed

CHILD = ("compose.cli", "worker", "--streams", "ai", "--child")
TOPICS = (specs.AI_TASKS, specs.AI_RESULTS, specs.AI_DEADLETTER)
PARTITIONS = 2
QUICK: dict[str, Any] = {
    "ai_concurrency": 16,
    "ai_segment_chars": 1_000,
    "ai_segment_overlap_chars": 50,
    "rollup_interval_s": 0.2,
    "session_timeout_s": 2.0,
    "partitions": PARTITIONS,
}


class Submitter:
    """A plain producer of AI records, and what it has asked."""

    def __init__(self, bootstrap: str) -> None:
        self._producer = Producer(
            {"bootstrap.servers": bootstrap, "partitioner": "murmur2_random", "linger.ms": 2, "log_level": 0}
        )
        self.questions: dict[str, str] = {}

    def submit(self, task_id: str, question: str = "", **other: Any) -> None:
        """Submit a task."""
        question = question or f"What is there to be said of {task_id}?"
        values = {"task_type": "question", "user": "ada", "language": "English", **other}
        self.questions[task_id] = question
        self.say(Submit(task_id=task_id, question=question, submitted_ms=time.time_ns() // 1_000_000, **values))

    def cancel(self, task_id: str) -> None:
        """Cancel one."""
        self.say(Cancel(task_id))

    def say(self, record: TaskRecord) -> None:
        """Send a record."""
        encoded = ai.encode(record)
        self.raw(encoded.key or b"", encoded.value, encoded.headers)

    def raw(self, key: bytes, value: bytes, headers: Sequence[tuple[str, bytes | None]]) -> None:
        """Send anything."""
        self._producer.produce(specs.AI_TASKS, value, key, headers=list(headers))
        self._producer.poll(0)

    def flush(self) -> None:
        """Wait until Kafka has all."""
        assert self._producer.flush(30) == 0


@dataclass
class Told:
    """A task's events, in the order of its partition of `ai.results.v1`."""

    events: list[TaskEvent] = field(default_factory=list)

    def attempts(self, segment: int | None = None) -> int:
        """How often a call was begun."""
        return sum(isinstance(event, AttemptStarted) and event.segment == segment for event in self.events)

    def voided(self, segment: int | None = None) -> Counter[str]:
        """Why attempts of a call came to nothing, by error type; `lost` when their owner died."""
        found = (event for event in self.events if isinstance(event, AttemptDiscarded) and event.segment == segment)
        return Counter(event.error_type for event in found)

    @property
    def end(self) -> TaskEvent | None:
        """Its final event."""
        return next((event for event in self.events if isinstance(event, FINAL_EVENTS)), None)

    def written(self, segment: int | None = None) -> str:
        """What a client has that shows the answer as it comes: it drops what is void."""
        shown: list[str] = []
        for event in self.events:
            if isinstance(event, AttemptDiscarded) and event.segment == segment:
                shown = []
            elif isinstance(event, TextWritten) and event.segment == segment:
                if event.kind is Kind.ANSWER:
                    shown.append(event.text)
                assert event.block >= len(shown) - 1, "blocks are told in their order"
        return "".join(shown)


@dataclass
class Run(StreamRun):
    """AI workers on the stack, with a database of their own."""

    submitter: Submitter

    @property
    def model(self) -> ModelServer:
        """The stand-in."""
        assert self.stack.model is not None
        return self.stack.model

    def rules(self, *rules: dict[str, Any]) -> None:
        """Have the stand-in misbehave."""
        modelserver.set_rules(self.model, *rules)

    def calls(self) -> dict[str, dict[str, Any]]:
        """What the stand-in has counted, by `task/call`."""
        return modelserver.calls(self.model)

    def told(self) -> dict[str, Told]:
        """All events so far, by task."""
        found: dict[str, Told] = defaultdict(Told)
        for _, value, _ in self.read(specs.AI_RESULTS):
            event = decode_event(value)
            assert not isinstance(event, Malformed), event
            found[event.task_id].events.append(event)
        return found

    def state(self, task_id: str) -> dict[str, Any]:
        """What its owner says of a task; nothing while nobody answers for it."""
        for worker in self.workers:
            code, body = self.ask(f"/ai/tasks/{task_id}", worker)
            if code in (200, 404):
                found: dict[str, Any] = json.loads(body)
                return found
        return {}

    def ended(self) -> set[str]:
        """The tasks that are over."""
        return {task_id for task_id, told in self.told().items() if told.end is not None}

    def dead(self) -> dict[str, str]:
        """The reasons of dead letters, by key."""
        return {key.decode(): headers["reason"].decode() for key, _, headers in self.read(specs.AI_DEADLETTER)}

    def assert_told_soundly(self) -> None:
        """Each task ended once, told nothing after it, and has the answer of its own question, as it was told in pieces."""
        for task_id, told in self.told().items():
            ends = [event for event in told.events if isinstance(event, FINAL_EVENTS)]
            assert len(ends) == 1, f"{task_id} ended as {ends}"
            assert told.events[-1] is ends[0], f"{task_id} went on after its end"
            ids = [event.id for event in told.events]
            assert ids == sorted(set(ids)), f"{task_id} is told in disorder"
            if isinstance(ends[0], TaskCompleted):
                assert ends[0].result == told.written(), task_id
                assert ends[0].result == self.answer(self.submitter.questions[task_id]), (
                    f"{task_id} has another's answer"
                )

    def answer(self, question: str) -> str:
        """What the stand-in has to say of a question, in segments or not."""
        limit, overlap = self.settings.ai_segment_chars, self.settings.ai_segment_overlap_chars
        parts = split(question, limit, overlap)
        found = [stand_in_answer(part) for part in parts]
        if len(parts) == 1:
            return found[0]
        texts = (question[:MERGE_QUESTION_CHARS], *found)
        merge = Asked(task_type="question", language="English", part=Part.MERGE, texts=texts)
        return stand_in_answer(ShippedPrompts("stand-in").messages(merge)[-1].content)


@contextmanager
def ai_run(stack: LocalStack, folder: Path, workers: int = 1, faults: str = "", **settings: Any) -> Iterator[Run]:
    """AI workers on empty topics, and a stand-in that does nothing wrong; all end with it. `faults` are the first's."""
    database = new_database()
    with emptied(stack, "ai", *TOPICS):
        made = []
        for number in range(workers):
            places = {"data_dir": folder / f"w{number}", "worker_port": free_port(), "clickhouse_database": database}
            own = stack.settings(**{**QUICK, **places, **settings}, faults="" if number else faults)
            made.append(Worker(f"ai-{number}", own, CHILD).start())
        run = Run(stack, made[0].settings, made, Submitter(stack.kafka.bootstrap))
        partitions = set(range(run.settings.partitions))
        try:
            run.rules()
            modelserver.forget_calls(run.model)
            run.until(lambda: set().union(*(w.owns() for w in made)) == partitions, "all partitions are owned")
            yield run
        finally:
            for server in stack.servers:
                server.start()
            run.rules()
            end(made)
