"""A file fold in a world of plain values: a log, a changelog, a bucket, a scripted converter, and a process that may die."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from streams.files.effects import Abandon, Convert, Effect, Sweep, Verify, Wake
from streams.files.fold import FilesFold
from streams.files.rules import FilesRules
from streams.runtime.fold import Position
from topics import files
from topics.files import AttemptFailed, Converted, Owner, Prepared, Progressed, Source, Stage, Submit, Swept, Verified
from topics.files_events import FINAL_EVENTS, JobCompleted, JobEvent, JobProgressed, decode_event
from topics.malformed import Malformed
from topics.records import Batch, DeadLetter, Emit, Record
from topics.specs import FILES_JOBS, FILES_PROGRESS

RULES = FilesRules(partition=0, partitions=1, concurrency=2, per_user=1, sweep_after_ms=5_000)
START_MS = 1_000_000
MD5 = "d41d8cd98f00b204e9800998ecf8427e"


def submit(job_id: str = "j", **other: Any) -> Submit:
    """A job of user u."""
    values = {"format": "mp3", "user": "u", "source": Source(key=f"uploads/1/{job_id}.webm")}
    return Submit(job_id=job_id, submitted_ms=1, **{**values, **other})


@dataclass
class World:
    """One partition. The converter does each attempt of a job by `script`: `ok`, `retry`, `refuse`, or `unverified`, whose
    result is not what the store holds; `ok` when it is used up. `bucket` are the keys of results that lie in it."""

    rules: FilesRules = RULES
    script: dict[str, list[str]] = field(default_factory=dict)
    log: list[Record] = field(default_factory=list)
    changelog: dict[bytes, bytes] = field(default_factory=dict)
    cursor: int = 0
    epoch: int = 1
    term: int = 0
    dead: list[DeadLetter] = field(default_factory=list)
    events: list[JobEvent] = field(default_factory=list)
    inflight: list[Effect] = field(default_factory=list)
    reports: list[Emit] = field(default_factory=list)
    wake: Wake | None = None
    bucket: set[str] = field(default_factory=set)
    zombies: list[str] = field(default_factory=list)  # keys that converters of dead owners may still upload to
    conversions: Counter[str] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        self.start()

    # -- the process --------------------------------------------------------------------------------------------

    def start(self) -> None:
        """A process begins: it restores what was committed, and says so. What the one before had converted goes on."""
        for effect in getattr(self, "inflight", []):
            if isinstance(effect, Convert) and (job := self.fold.job(effect.job_id)) is not None:
                self.zombies.append(job.key(effect.term, effect.attempt))
        self.fold = self.restored()
        self.folded = self.cursor
        self.term += 1
        self.inflight, self.reports, self.wake = [], [], None
        self.fold.take_seat(self.term)
        self.report(Owner(self.term))

    def restored(self) -> FilesFold:
        """The fold of what is committed."""
        fold = FilesFold(self.rules)
        fold.restore(list(self.changelog.items()))
        fold.restored(Position(self.epoch, self.cursor))
        return fold

    def read(self, count: int = 1 << 30) -> None:
        """Fold the next records, at most `count`."""
        records = self.log[self.folded : self.folded + count]
        if records:
            end = self.folded + len(records)
            self.fold.step(Batch.of(FILES_JOBS, self.rules.partition, self.folded, end, records))
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
            assert emit.topic == FILES_PROGRESS
            event = decode_event(emit.value)
            assert not isinstance(event, Malformed)
            self.events.append(event)
        self.dead += flush.dead
        reports, self.reports = self.reports, []
        for emit in reports:
            self.append(emit.key, emit.value, emit.headers)
        self.fold.committed(flush)
        for effect in flush.effects:
            if isinstance(effect, Wake):
                self.wake = effect
            elif isinstance(effect, Abandon):
                self.inflight = [e for e in self.inflight if isinstance(e, Sweep) or e.job_id != effect.job_id]
            else:
                self.inflight.append(effect)

    def work(self, at: int = 0) -> None:
        """Do an effect that is under way."""
        if not self.inflight:
            return
        effect = self.inflight.pop(at % len(self.inflight))
        job = self.fold.job(effect.job_id) if not isinstance(effect, Wake) else None
        if job is None or not self.fold.wanted(effect):
            return
        if isinstance(effect, Sweep):
            self.bucket -= set(job.losers())
            if effect.last:
                self.report(Swept(job.id))
            return
        assert isinstance(effect, (Convert, Verify))
        place = (effect.job_id, effect.term, effect.attempt)
        script = self.script.get(job.id, [])
        outcome = script[0] if script else "ok"
        if isinstance(effect, Verify):
            if script and outcome == "unverified":
                script.pop(0)
                self.report(AttemptFailed(*place, "not_verified", outcome, 1_500))
            else:
                self.report(Verified(*place, 5))
            return
        self.conversions[job.id] += 1
        self.report(Prepared(*place, 1_000, None, 3))
        self.report(Progressed(*place, Stage.CONVERTING, 50))
        if outcome in ("retry", "refuse"):
            script.pop(0)
            self.report(AttemptFailed(*place, f"{outcome}d", outcome, 1_500 if outcome == "retry" else None))
            return
        if script and outcome == "ok":
            script.pop(0)
        self.bucket.add(job.key(effect.term, effect.attempt))
        self.report(Converted(*place, 10, MD5, 1_000, (), 80))

    def upload_late(self) -> None:
        """A converter of a dead owner comes to its end."""
        if self.zombies:
            self.bucket.add(self.zombies.pop(0))

    # -- the log ------------------------------------------------------------------------------------------------

    @property
    def now_ms(self) -> int:
        """The newest append time."""
        return self.log[-1].append_ms if self.log else START_MS

    def append(self, key: bytes | None, value: bytes | None, headers: Any, after_ms: int = 0) -> None:
        """One more record, so much later than the one before."""
        self.log.append(Record(len(self.log), self.now_ms + after_ms, value, key, tuple(headers)))

    def report(self, record: files.JobRecord) -> None:
        """Have a record written by the next flush."""
        key, value, headers = files.encode(record)
        self.reports.append(Emit(FILES_JOBS, key, value, headers, self.rules.partition))

    def say(self, record: files.JobRecord, after_ms: int = 0) -> None:
        """Produce a record."""
        self.append(*files.encode(record), after_ms)

    # -- runs ---------------------------------------------------------------------------------------------------

    def settle(self) -> None:
        """Fold, flush and do effects until nothing moves but time."""
        while True:
            self.read()
            self.flush()
            if not (self.inflight or self.reports or self.folded < len(self.log)):
                return
            while self.inflight:
                self.work()

    def finish(self) -> dict[str, str]:
        """Let time pass until every job has ended and all is swept; the jobs' states."""
        self.settle()
        while self.zombies:
            self.upload_late()
        for _ in range(500):
            jobs = self.fold.state.jobs.values()
            if not self.fold.state.open and all(job.course.swept for job in jobs):
                break
            assert self.wake is not None, "something waits for time, and nobody is to be woken"
            self.say(files.Idle(), self.wake.after_ms)
            self.settle()
        assert not self.fold.state.open
        return self.ends()

    def ends(self) -> dict[str, str]:
        """The jobs' states."""
        return {job.id: job.course.status.value for job in self.fold.state.jobs.values()}


def assert_sound(world: World) -> None:
    """Every job ended once and nothing was told after it, events can be told again, and the bucket holds the winners only."""
    ended: set[str] = set()
    for event in world.events:
        assert event.job_id not in ended, event
        if isinstance(event, FINAL_EVENTS):
            ended.add(event.job_id)
    ids = [(event.job_id, event.id) for event in world.events]
    assert len(set(ids)) == len(ids)
    jobs = world.fold.state.jobs
    for job in jobs.values():
        told = [event for event in world.events if event.job_id == job.id]
        assert [event.id for event in told] == sorted(event.id for event in told)
        again = world.fold.events(job, None)
        assert again == [event for event in told if not isinstance(event, JobProgressed) or event in again]
        assert world.conversions[job.id] <= 1 + job.course.retries + job.course.lost
        assert job.course.retries <= world.rules.retries_max
    won = {event.r2_key for event in world.events if isinstance(event, JobCompleted)}
    assert world.bucket == won == {job.r2_key for job in jobs.values() if job.r2_key}, "no orphan, and every winner"
    state = world.fold.state
    if not state.open:
        assert (state.waiting, state.first, state.running) == ({}, {}, Counter())


def dump(fold: FilesFold) -> Any:
    """All of a fold's state that decides anything, in comparable form."""
    state = fold.state
    return (
        {job.id: (job.origin, job.submit, job.course, job.due_ms) for job in state.jobs.values()},
        list(state.jobs),
        list(state.open),
        list(state.finished),
        {user: list(own) for user, own in state.waiting.items()},
        list(state.first),
        dict(state.running),
        {user: list(own) for user, own in state.by_user.items()},
        (state.clock_ms, state.term, state.turns, state.totals),
    )
