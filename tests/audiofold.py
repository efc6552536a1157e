"""An audio fold in a world of plain values: a log, a changelog, an object store, and a process that may die at any point."""

from __future__ import annotations

import hashlib
from collections import Counter
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from streams.audio import outcomes, seqs
from streams.audio.core import wanted
from streams.audio.effects import Assemble, Effect, PutSegment, RemoveSegments
from streams.audio.fold import AudioFold
from streams.audio.held import Budget, memory_of
from streams.audio.picking import Picker
from streams.audio.rules import AudioRules
from streams.audio.session import Saved, decode
from streams.audio.state import SESSION_TAG
from streams.runtime.fold import Position
from topics import audio
from topics.audio import Chunk, Close, Format, Open, Store, Tier
from topics.audio_events import decode_event, segment_key
from topics.records import Batch, DeadLetter, Emit, Record
from topics.specs import AUDIO_CHUNKS, AUDIO_SEGMENTS

RULES = AudioRules(partition=0, partitions=1)
MINUTE_MS = 60_000
START_MS = 1_000_000


def opened(session_id: str = "s", **other: Any) -> Open:
    """An open record of 8 kHz mono PCM: 16 bytes a millisecond."""
    values = {
        "user": "u",
        "format": Format.PCM_S16LE,
        "rate": 8_000,
        "channels": 1,
        "tier": Tier.STANDARD,
        "store": Store.FLAC,
    }
    return Open(session_id=session_id, **{**values, **other})


def pcm(session_id: str, seq: int, ms: int = 1_000) -> bytes:
    """A chunk's bytes, told apart by session and seq."""
    digest = hashlib.sha256(f"{session_id}/{seq}".encode()).digest()
    return (digest * (ms // 2 + 1))[: ms * 16]


def chunk(session_id: str, seq: int, ms: int = 1_000, data: bytes | None = None) -> Chunk:
    """A chunk of so many milliseconds."""
    return Chunk(session_id, seq, 0, None, pcm(session_id, seq, ms) if data is None else data)


def written(record: Any, *headers: tuple[str, bytes]) -> tuple[bytes | None, bytes | None, Any]:
    """Key, value and headers of a record."""
    encoded = audio.encode(record)
    return encoded.key, encoded.value, (*encoded.headers, *headers)


@dataclass
class Made:
    """What a run has left behind, and nothing of how it came to be."""

    segments: dict[str, list[tuple[int, int, str]]]
    objects: dict[str, str]
    recordings: dict[str, str]
    sessions: dict[str, tuple[Any, ...]]
    dead: Counter[tuple[str, bytes | None, str]]
    events: Counter[str]


@dataclass
class World:
    """One partition. `log` holds what was produced and what was reported; `process` is the fold, alive."""

    rules: AudioRules = RULES
    capacity: int = 1 << 30
    fails: bool = False  # the object store takes nothing
    error: str = "the store is away"  # and says this
    log: list[Record] = field(default_factory=list)
    changelog: dict[bytes, bytes] = field(default_factory=dict)
    cursor: int = 0
    epoch: int = 1
    objects: dict[str, bytes] = field(default_factory=dict)
    recordings: dict[str, Assemble] = field(default_factory=dict)
    recorded: dict[str, bytes] = field(default_factory=dict)
    dead: list[DeadLetter] = field(default_factory=list)
    events: list[Emit] = field(default_factory=list)
    inflight: list[Effect] = field(default_factory=list)
    reports: list[Emit] = field(default_factory=list)
    side_reads: int = 0

    def __post_init__(self) -> None:
        self.start()

    # -- the process --------------------------------------------------------------------------------------------

    def start(self) -> None:
        """A process begins: it restores what was committed."""
        self.budget = Budget(self.capacity)
        self.fold = AudioFold(self.rules, self.budget)
        self.fold.restore(list(self.changelog.items()))
        self.fold.restored(Position(self.epoch, self.cursor))
        self.folded = self.cursor
        self.inflight, self.reports = list(self.fold.undone()), []

    def read(self, count: int = 1 << 30) -> None:
        """Fold the next records, at most `count`."""
        records = self.log[self.folded : self.folded + count]
        if records:
            end = self.folded + len(records)
            self.fold.step(Batch.of(AUDIO_CHUNKS, self.rules.partition, self.folded, end, records))
            self.folded = end

    def flush(self, commits: bool = True) -> None:
        """Seal, and commit unless the process dies before."""
        flush = self.fold.seal(Position(self.epoch, self.folded))
        assert self.cursor <= flush.cursor <= self.folded
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
            (self.events if emit.topic == AUDIO_SEGMENTS else self.dead).append(emit)  # type: ignore[arg-type]
        self.dead += flush.dead
        for emit in self.reports:
            self.append(emit.key, emit.value, emit.headers)
        self.reports = []
        self.fold.committed(flush)
        self.inflight += flush.effects

    def work(self) -> None:
        """Do the oldest effect that is under way."""
        if self.inflight:
            effect = self.inflight.pop(0)
            if not wanted(self.fold.state, effect):
                return
            session_id = effect.opened.session_id
            outcome = self._done(session_id, effect)
            self.reports.append(outcomes.encode(outcome, session_id, AUDIO_CHUNKS, self.rules.partition))

    def _done(self, session_id: str, effect: Effect) -> outcomes.Outcome:
        match effect:
            case PutSegment():
                return self._put(session_id, effect)
            case Assemble():
                missing = [
                    s for s in effect.sources if self._key(session_id, s.first_seq, s.last_seq) not in self.objects
                ]
                if missing:
                    return outcomes.Unrecorded("segments are missing")
                parts = [self.objects[self._key(session_id, s.first_seq, s.last_seq)] for s in effect.sources]
                self.recordings[session_id] = effect
                self.recorded[session_id] = b"".join(parts)
                md5 = hashlib.md5(self.recorded[session_id]).hexdigest()
                return outcomes.Recorded(
                    f"audio/{session_id}/recording",
                    len(self.recorded[session_id]),
                    md5,
                    0,
                    segments=len(effect.sources),
                )
            case RemoveSegments():
                for first, last in effect.ranges:
                    self.objects.pop(self._key(session_id, first, last), None)
                return outcomes.Removed()

    def _put(self, session_id: str, effect: PutSegment) -> outcomes.Outcome:
        if self.fails:
            return outcomes.Failed(effect.first_seq, effect.last_seq, effect.attempts + 1, self.error)
        found = self.fold.shelf.bytes_of(session_id, effect.first_seq, effect.last_seq)
        picker = Picker(effect)
        for record in self.log[effect.first_offset : effect.last_offset + 1]:
            picker.feed(record)
        if found is None:
            self.side_reads += 1
            found = picker.chunks
        assert found is not None
        assert found == picker.chunks, "memory and log give the same bytes"
        data = b"".join(found)
        key = self._key(session_id, effect.first_seq, effect.last_seq)
        assert self.objects.get(key, data) == data, "the same key, the same bytes"
        self.objects[key] = data
        md5 = hashlib.md5(data).hexdigest()
        return outcomes.Stored(effect.first_seq, effect.last_seq, len(data), md5, 1)

    def _key(self, session_id: str, first: int, last: int) -> str:
        return segment_key(session_id, first, last, "raw")

    # -- the log ------------------------------------------------------------------------------------------------

    @property
    def now_ms(self) -> int:
        """The newest append time."""
        return self.log[-1].append_ms if self.log else START_MS

    def append(self, key: bytes | None, value: bytes | None, headers: Any, after_ms: int = 0) -> None:
        """One more record, so much later than the one before."""
        self.log.append(Record(len(self.log), self.now_ms + after_ms, value, key, tuple(headers)))

    def say(self, record: Any, *headers: tuple[str, bytes], after_ms: int = 0) -> None:
        """Produce a record."""
        self.append(*written(record, *headers), after_ms)

    def talk(self, session_id: str, first: int, last: int, every_ms: int = 1_000) -> None:
        """Produce chunks of a second each, at their own pace."""
        for seq in range(first, last + 1):
            self.say(chunk(session_id, seq), after_ms=every_ms)

    def idle(self, after_ms: int) -> None:
        """Time passes and the owner says so."""
        self.say(audio.Idle(), after_ms=after_ms)

    # -- runs ---------------------------------------------------------------------------------------------------

    def settle(self) -> None:
        """Fold, flush and do effects until nothing moves."""
        while self.folded < len(self.log) or self.inflight or self.reports:
            self.read()
            self.flush()
            while self.inflight:
                self.work()
            if self.reports:
                self.flush()
        self.flush()

    def finish(self) -> Made:
        """End every session by silence, and see what is left."""
        self.settle()
        for _ in range(3):
            behind_ms = max(0, self.fold.state.clock_ms - self.now_ms)
            self.idle(behind_ms + self.rules.session_idle_ms + 1)
            self.settle()
        return self.made()

    def saved(self) -> dict[str, Saved]:
        """The snapshots that are committed."""
        return {key[1:].decode(): decode(value) for key, value in self.changelog.items() if key[:1] == SESSION_TAG}

    def made(self) -> Made:
        """What the run has come to."""
        saved = self.saved()
        segments = {
            name: [(s.first_seq, s.last_seq, s.kept.name) for s in session.segments] for name, session in saved.items()
        }
        ends = {
            name: (s.status.name, s.closed_by, s.ranges, s.duplicates, s.size, s.duration_us)
            for name, s in saved.items()
        }
        dead = Counter((letter.reason, letter.key, _sum(letter.value or b"")) for letter in self.dead)
        events = Counter(type(decode_event(emit.value)).__name__ for emit in self.events)
        return Made(segments, _summed(self.objects), _summed(self.recorded), ends, dead, events)


def _sum(data: bytes) -> str:
    return hashlib.md5(data).hexdigest()


def _summed(objects: dict[str, bytes]) -> dict[str, str]:
    return {key: _sum(data) for key, data in objects.items()}


def held_exactly(world: World) -> bool:
    """Whether the accounting of held bytes is true."""
    shelf = world.fold.shelf
    found = [shelf.window(name) for name in world.fold.state.sessions]
    by_session = all(
        shelf.held_by(name) == sum(memory_of(data) for _, data in shelf.window(name))
        for name in world.fold.state.sessions
    )
    return by_session and shelf.held == sum(memory_of(data) for window in found for _, data in window)


def assert_whole(world: World) -> None:
    """Every accepted seq is in exactly one segment."""
    for name, saved in world.saved().items():
        spans = sorted((s.first_seq, s.last_seq) for s in saved.segments)
        assert all(a[1] < b[0] for a, b in pairwise(spans)), (name, spans)
        pending = [(piece.seq, piece.seq) for piece in saved.pending]
        assert seqs.union([*spans, *pending]) == [tuple(r) for r in saved.ranges], name


def assert_bounded(world: World) -> None:
    """No session has more segments, nor more pending chunks, than the rules let it have, also once all of it is cut."""
    rules = world.rules
    for session in world.fold.state.sessions.values():
        assert len(session.segments) + session.pending.runs <= rules.segments_max
        assert len(session.ranges) <= rules.segments_max
        assert len(session.pending) <= rules.pending_max


__all__ = ["Close", "World", "assert_bounded", "assert_whole", "chunk", "held_exactly", "opened", "pcm", "written"]
