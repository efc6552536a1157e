"""An AI fold in a world of plain values: a log, a changelog, a scripted model, and a process that may die at any point."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from msgspec.structs import replace

from streams.ai.effects import Abandon, CallModel, Effect, SendWebhook, Wake
from streams.ai.fold import AiFold
from streams.ai.model_port import TaskType
from streams.ai.rules import AiRules, ModelLimits, Price
from streams.runtime.fold import Position
from topics import ai
from topics.ai import Answered, Block, CallFailed, Kind, Owner, Status, Submit, Usage, WebhookSent
from topics.ai_events import FINAL_EVENTS, TaskCompleted, TaskEvent, TextWritten, decode_event
from topics.malformed import Malformed
from topics.records import Batch, DeadLetter, Emit, Record
from topics.rows import AI_TASKS_ROWS
from topics.specs import AI_RESULTS, AI_TASKS

MODEL = "m"
RULES = AiRules(
    partition=0,
    partitions=1,
    task_types={"analysis": TaskType("1", MODEL)},
    models={MODEL: ModelLimits(concurrency=2)},
    prices={MODEL: Price(4_000_000, 16_000_000)},
    segment_chars=20,
    segment_overlap_chars=0,
)
START_MS = 1_000_000


def split(question: str, limit: int, overlap: int) -> list[str]:
    """Pieces of `limit` characters."""
    return [question[at : at + limit] for at in range(0, len(question), limit)]


def submit(task_id: str = "t", **other: Any) -> Submit:
    """A short question of user u."""
    values = {"task_type": "analysis", "user": "u", "language": "en", "question": f"what of {task_id}?"}
    return Submit(task_id=task_id, submitted_ms=1, **{**values, **other})


@dataclass
class World:
    """One partition. The model answers each call by `script`, by (task, call): `ok`, `retry`, `refuse`; `ok` when it is
    used up."""

    rules: AiRules = RULES
    script: dict[tuple[str, int], list[str]] = field(default_factory=dict)
    log: list[Record] = field(default_factory=list)
    changelog: dict[bytes, bytes] = field(default_factory=dict)
    cursor: int = 0
    epoch: int = 1
    term: int = 0
    dead: list[DeadLetter] = field(default_factory=list)
    events: list[TaskEvent] = field(default_factory=list)
    sent_on: list[Emit] = field(default_factory=list)
    inflight: list[Effect] = field(default_factory=list)
    reports: list[Emit] = field(default_factory=list)
    wake: Wake | None = None
    calls: Counter[tuple[str, int]] = field(default_factory=Counter)  # that reached the model
    webhooks: Counter[str] = field(default_factory=Counter)
    rows: dict[str, dict[str, Any]] = field(default_factory=dict)  # what ClickHouse shows

    def __post_init__(self) -> None:
        self.start()

    # -- the process --------------------------------------------------------------------------------------------

    def start(self) -> None:
        """A process begins: it restores what was committed, and says so."""
        self.fold = self.restored()
        self.folded = self.cursor
        self.term += 1
        self.inflight, self.reports, self.wake = [], [], None
        self.fold.take_seat(self.term)
        self.report(Owner(self.term))

    def restored(self) -> AiFold:
        """The fold of what is committed."""
        fold = AiFold(self.rules, split)
        fold.restore(list(self.changelog.items()))
        fold.restored(Position(self.epoch, self.cursor))
        return fold

    def read(self, count: int = 1 << 30) -> None:
        """Fold the next records, at most `count`."""
        records = self.log[self.folded : self.folded + count]
        if records:
            end = self.folded + len(records)
            self.fold.step(Batch.of(AI_TASKS, self.rules.partition, self.folded, end, records))
            self.folded = end

    def flush(self, commits: bool = True) -> None:
        """Seal, and commit unless the process dies before."""
        flush = self.fold.seal(Position(self.epoch, self.folded))
        if not commits:
            self.start()
            return
        for key, value in flush.changelog:
            if value is None:
                self.changelog.pop(key, None)
            else:
                self.changelog[key] = value
        self.cursor = flush.cursor
        for emit in flush.emits:
            if emit.topic == AI_RESULTS:
                event = decode_event(emit.value)
                assert not isinstance(event, Malformed)
                self.events.append(event)
            else:
                self.sent_on.append(emit)
        self.dead += flush.dead
        reports, self.reports = self.reports, []
        for emit in reports:
            self.append(emit.key, emit.value, emit.headers)
        self.fold.committed(flush)
        for effect in flush.effects:
            if isinstance(effect, Wake):
                self.wake = effect
            elif isinstance(effect, Abandon):
                self.inflight = [
                    e
                    for e in self.inflight
                    if not (isinstance(e, CallModel) and e.task_id == effect.task_id and effect.call in (None, e.call))
                ]
            else:
                self.inflight.append(effect)

    def show(self) -> None:
        """Write the rows of what is committed."""
        done = self.fold.materialise()
        if done is None:
            return
        for row in done.rows[AI_TASKS_ROWS].to_pylist():
            if row["version"] >= self.rows.get(row["task_id"], row)["version"]:
                self.rows[row["task_id"]] = row
        self.fold.materialised(done)

    def work(self, at: int = 0) -> None:
        """Do an effect that is under way."""
        if not self.inflight:
            return
        effect = self.inflight.pop(at % len(self.inflight))
        if isinstance(effect, SendWebhook):
            if self.fold.wanted(effect):
                self.webhooks[effect.task_id] += 1
                self.report(WebhookSent(effect.task_id, True, 1))
            return
        assert isinstance(effect, CallModel)
        asked = self.fold.asked(effect)
        if asked is None:
            return
        key = (effect.task_id, effect.call)
        self.calls[key] += 1
        script = self.script.get(key, [])
        outcome = script.pop(0) if script else "ok"
        place = (effect.task_id, effect.call, effect.term, effect.attempt)
        said = f"<{' + '.join(asked.texts)}>"
        self.report(Block(*place, 0, Kind.REASONING, "hm"))
        self.report(Block(*place, 1, Kind.ANSWER, said[: len(said) // 2]))
        if outcome == "ok":
            self.report(Block(*place, 2, Kind.ANSWER, said[len(said) // 2 :]))
            self.report(Answered(*place, 3, True, 100, Usage(10, 5)))
        else:
            pause = 1_500 if outcome == "retry" else None
            self.report(CallFailed(*place, "server_error" if pause else "bad_request", outcome, pause, 50))

    # -- the log ------------------------------------------------------------------------------------------------

    @property
    def now_ms(self) -> int:
        """The newest append time."""
        return self.log[-1].append_ms if self.log else START_MS

    def append(self, key: bytes | None, value: bytes | None, headers: Any, after_ms: int = 0) -> None:
        """One more record, so much later than the one before."""
        self.log.append(Record(len(self.log), self.now_ms + after_ms, value, key, tuple(headers)))

    def report(self, record: ai.TaskRecord) -> None:
        """Have a record written by the next flush."""
        key, value, headers = ai.encode(record)
        self.reports.append(Emit(AI_TASKS, key, value, headers, self.rules.partition))

    def say(self, record: ai.TaskRecord, after_ms: int = 0) -> None:
        """Produce a record."""
        self.append(*ai.encode(record), after_ms)

    def idle(self, after_ms: int) -> None:
        """Time passes and the owner says so."""
        self.say(ai.Idle(), after_ms=after_ms)

    # -- runs ---------------------------------------------------------------------------------------------------

    def settle_log(self) -> None:
        """Fold and flush until the log is read and nothing is to be reported; effects stay under way."""
        while self.folded < len(self.log) or self.reports:
            self.read()
            self.flush()
        self.flush()

    def settle(self) -> None:
        """Fold, flush and do effects until nothing moves but time."""
        while True:
            self.read()
            self.flush()
            if not (self.inflight or self.reports or self.folded < len(self.log)):
                return
            while self.inflight:
                self.work()

    def finish(self) -> Made:
        """Let time pass until every task has ended, and see what is left."""
        self.settle()
        for _ in range(500):
            if not self.fold.state.open:
                break
            assert self.wake is not None, "something waits for time, and nobody is to be woken"
            self.idle(self.wake.after_ms)
            self.settle()
        assert not self.fold.state.open
        return self.made()

    def made(self) -> Made:
        """What the run has come to."""
        tasks = {
            task.id: (task.status, task.result, task.error_type, task.webhook.name)
            for task in self.fold.state.tasks.values()
        }
        dead = Counter((letter.reason, letter.key) for letter in self.dead)
        final = Counter((e.task_id, type(e).__name__) for e in self.events if isinstance(e, FINAL_EVENTS))
        return Made(tasks, dead, final)


@dataclass
class Made:
    """What a run has left behind, and nothing of how it came to be."""

    tasks: dict[str, tuple[Any, ...]]
    dead: Counter[tuple[str, bytes | None]]
    final: Counter[tuple[str, str]]


def assert_sound(world: World) -> None:
    """Every task ended once, nothing was told after its end, events can be told again, calls are within their bound."""
    assert all(count == 1 for count in world.made().final.values())
    ended: set[str] = set()
    for event in world.events:
        assert event.task_id not in ended, event
        if isinstance(event, FINAL_EVENTS):
            ended.add(event.task_id)
    ids = [(event.task_id, event.id) for event in world.events]
    assert len(set(ids)) == len(ids)
    for task in world.fold.state.tasks.values():
        told = [event for event in world.events if event.task_id == task.id]
        assert [event.id for event in told] == sorted(event.id for event in told)
        again = world.fold.events(task, None)
        kept = [event for event in told if not isinstance(event, TextWritten) or event in again]
        if task.let_go:
            kept = [replace(e, result=None) if isinstance(e, TaskCompleted) else e for e in kept]
        assert again == kept, "what is told again is what was told"
        for number, call in enumerate(task.calls):
            assert world.calls[task.id, number] <= 1 + call.retries + call.lost
            assert call.retries <= world.rules.retries_max
        row = world.rows.get(task.id)
        if row is not None and row["status"] == Status.COMPLETED and not task.gateway and task.segments == 1:
            assert row["result"] == f"<{row['question']}>", "a result belongs to its question"
        if task.let_go:
            assert row is not None and row["status"] == task.status, "what is let go of is shown"
        elif task.status is Status.COMPLETED and not task.gateway and task.segments == 1:
            assert task.result == f"<{task.submit.question}>", "a result belongs to its question"
    line = world.fold.state.lines.get(MODEL)
    if line is not None and not world.fold.state.open:
        assert (line.running, line.waiting, dict(line._tags), line.fresh) == (0, 0, {}, {})


def dump(fold: AiFold) -> Any:
    """All of a fold's state that decides anything, in comparable form."""
    state = fold.state
    tasks = {
        task.id: (
            task.origin,
            task.parts,
            task.save(task.version),
            [[text.chunk(n) for n in range(text.chunks)] for text in task.texts],
        )
        for task in state.tasks.values()
    }
    lines = {
        model: (
            line.save(),
            line.running,
            sorted(line._waiting),
            dict(line.fresh),
            {u: list(t) for u, t in line._tags.items()},
        )
        for model, line in state.lines.items()
    }
    return (
        tasks,
        list(tasks),
        lines,
        state.clock_ms,
        state.term,
        state.batches,
        state.totals,
        list(state.open),
        list(state.finished),
        {user: list(own) for user, own in state.by_user.items()},
        list(state.kept.items()),
        state.kept_bytes,
    )
