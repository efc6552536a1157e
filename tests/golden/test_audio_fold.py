"""Stories of audio sessions and everything that the fold makes of them, as text: change a rule, and the difference says so.

After a change that is meant, `python -m tests.golden.test_audio_fold` writes the texts anew.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest

from streams.audio import outcomes
from streams.audio.effects import Assemble, Effect, PutSegment, RemoveSegments
from tests.audiofold import RULES, Close, World, chunk, opened
from topics.audio import Format, Idle, Store, Tier
from topics.headers import header
from topics.records import DeadLetter, Emit, Record
from topics.specs import AUDIO_CHUNKS, AUDIO_SEGMENTS

FOLDER = Path(__file__).parent / "audio"


class Story:
    """A world whose records are told one by one, with all that comes of each."""

    def __init__(self, **world: Any) -> None:
        self.world = World(**world)
        self.lines: list[str] = []

    def tell(self, record: Any, *headers: tuple[str, bytes], after_ms: int = 0, quietly: bool = False) -> None:
        """One record: produced, folded and flushed."""
        self.world.say(record, *headers, after_ms=after_ms)
        self._fold(quietly)

    def talk(self, session_id: str, first: int, last: int) -> None:
        """A second of audio every second; only what is more than taking it is told."""
        for seq in range(first, last + 1):
            self.tell(chunk(session_id, seq), after_ms=1_000, quietly=True)

    def report(self, session_id: str, outcome: outcomes.Outcome) -> None:
        """An effect's outcome comes back."""
        emit = outcomes.encode(outcome, session_id, AUDIO_CHUNKS, self.world.rules.partition)
        self.world.append(emit.key, emit.value, emit.headers)
        self._fold(False)

    def work(self) -> None:
        """Do all effects, as far as they go, and fold their outcomes."""
        while self.world.inflight:
            self.world.work()
            reports, self.world.reports = self.world.reports, []
            for emit in reports:
                self.world.append(emit.key, emit.value, emit.headers)
                self._fold(False)

    def say(self, text: str) -> None:
        """A line of its own."""
        self.lines.append(f"# {text}")

    def _fold(self, quietly: bool) -> None:
        world = self.world
        record = world.log[-1]
        seen = len(world.events), len(world.dead), len(world.inflight), dict(world.changelog)
        world.read()
        world.flush()
        made = [
            *(_event(emit) for emit in world.events[seen[0] :]),
            *(_letter(letter) for letter in world.dead[seen[1] :]),
            *(_effect(effect) for effect in world.inflight[seen[2] :]),
            *(
                f"snapshot {key[1:].decode()}"
                for key, v in world.changelog.items()
                if key != b"p" and seen[3].get(key) != v
            ),
        ]
        made += [f"tombstone {key[1:].decode()}" for key in seen[3] if key not in world.changelog]
        if made or not quietly:
            self.lines.append(f"{record.offset:4} {(record.append_ms - 1_000_000) / 1000:8.1f}s  {_record(record)}")
            self.lines += [f"                  -> {line}" for line in made]
        self.lines += [f"                     log held from {world.cursor}"] if made else []


def _record(record: Record) -> str:
    headers = {name: (value or b"").decode() for name, value in record.headers if name not in ("captured_ms", "user")}
    kind = headers.pop("type", "?")
    rest = " ".join(f"{name}={value}" for name, value in headers.items())
    value = (record.value or b"").decode() if kind not in ("open", "chunk", "close", "idle") else ""
    return " ".join(filter(None, [(record.key or b"-").decode(), kind, rest, value]))


def _event(emit: Emit) -> str:
    assert emit.topic == AUDIO_SEGMENTS
    fields = msgspec.json.decode(emit.value or b"")
    return " ".join(
        f"{name}={value}" for name, value in fields.items() if name not in ("source_partition", "session_id")
    )


def _letter(letter: DeadLetter) -> str:
    return f"dead letter at {letter.offset}: {letter.reason}: {letter.error}" + (
        f" (type {(header(letter.headers, 'type') or b'').decode()})" if letter.reason == "segment_failed" else ""
    )


def _effect(effect: Effect) -> str:
    match effect:
        case PutSegment():
            where = f"offsets {effect.first_offset}-{effect.last_offset}"
            return f"PUT {effect.first_seq}-{effect.last_seq}, {where}, {effect.attempts} attempts before"
        case Assemble():
            ranges = [(source.first_seq, source.last_seq) for source in effect.sources]
            return f"ASSEMBLE {ranges}, failed {list(effect.failed)}, closed by {effect.closed_by}"
        case RemoveSegments():
            return f"REMOVE {list(effect.ranges)}"


def minutes() -> Story:
    """Cuts by age, the reorder window, a late chunk as a segment of its own, a gap, a close."""
    story = Story()
    story.tell(opened())
    story.talk("s", 0, 39)
    story.say("41 goes missing; 40 comes late, but within the reorder window of the cut")
    story.talk("s", 42, 62)
    story.tell(chunk("s", 40), after_ms=100)
    story.work()
    story.say("a repeat, and then the chunk that went missing")
    story.tell(chunk("s", 5))
    story.tell(chunk("s", 41), after_ms=500)
    story.talk("s", 64, 70)
    story.tell(Close("s"))
    story.work()
    story.say("sent again after the end: what is known is a repeat, what is new is refused")
    story.tell(chunk("s", 5))
    story.tell(Close("s"))
    story.tell(chunk("s", 99))
    return story


def silence() -> Story:
    """30 seconds without a chunk store what is there, 10 minutes end the session; a day later its id is forgotten."""
    story = Story()
    story.tell(opened())
    story.talk("s", 0, 4)
    for _ in range(7):
        story.tell(Idle(), after_ms=5_000, quietly=True)
    story.work()
    story.say("opened again with the same words: it goes on")
    story.tell(opened(), after_ms=1_000)
    story.talk("s", 5, 6)
    story.tell(Idle(), after_ms=600_000)
    story.work()
    story.tell(Idle(), after_ms=86_400_000)
    story.tell(Idle(), after_ms=1)
    story.say("the id may be used anew")
    story.tell(opened(), after_ms=1_000)
    return story


def failures() -> Story:
    """A segment that cannot be stored becomes a dead letter and a gap of its kind; a retry makes the recording again."""
    story = Story()
    story.tell(opened())
    story.talk("s", 0, 61)
    story.world.inflight.clear()
    story.report("s", outcomes.Failed(0, 57, 20, "the store is away"))
    story.tell(Close("s"), after_ms=1_000)
    story.work()
    story.say("the same outcome again changes nothing")
    story.report("s", outcomes.Failed(0, 57, 20, "the store is away"))
    story.say("the dead letter is sent back")
    story.report("s", outcomes.Retry(0))
    story.work()
    return story


def memory() -> Story:
    """Two windows fit: of those that come third one waits to hear a no, the other is read from the log."""
    story = Story(capacity=2 * RULES.window_memory(opened()))
    for name in ("a", "b"):
        story.tell(opened(name))
    story.tell(opened("c"), ("refuse", b"1"))
    story.tell(opened("d"))
    story.tell(chunk("c", 0))
    for name in ("d", "a"):
        story.tell(chunk(name, 0), after_ms=1_000)
    story.say("a ends, so that d is held from its next cut on")
    story.tell(Close("a"))
    story.work()
    story.tell(Idle(), after_ms=59_000)
    story.tell(chunk("d", 1), after_ms=1_000)
    story.say("the refused one comes again")
    story.tell(Close("b"))
    story.tell(opened("c"), ("refuse", b"1"), after_ms=1_000)
    story.lines.append(f"# {story.world.side_reads} segment read from the log")
    return story


def bad() -> Story:
    """Every kind of record that cannot be taken, and the good audio around it."""
    story = Story(rules=replace(RULES, partitions=1))
    story.tell(chunk("s", 0))
    story.tell(Close("s"))
    story.tell(opened())
    story.tell(opened(user="someone else"))
    story.tell(opened(tier=Tier.PREMIUM))
    story.tell(opened("o", format=Format.OPUS, rate=48_000, store=Store.ASIS))
    story.tell(chunk("o", 0, data=b"\xff"))
    story.tell(chunk("s", 0))
    story.tell(chunk("s", 1, data=b"odd"))
    for key, value, headers in [
        (b"s", b"ab", [("type", b"chunk"), ("seq", b"one"), ("captured_ms", b"0")]),
        (b"s", b"ab", [("type", b"chunk"), ("seq", b"1"), ("captured_ms", b"0"), ("md5", b"0" * 32)]),
        (b"s", b"", [("type", b"chunk"), ("seq", b"1"), ("captured_ms", b"0")]),
        (b"..", b"ab", [("type", b"chunk"), ("seq", b"1"), ("captured_ms", b"0")]),
        (b"s", b"", [("type", b"open"), ("format", b"mp3"), ("rate", b"8000"), ("channels", b"1")]),
        (b"s", b"[]", [("type", b"stored")]),
        (b"t", b'{"first_seq":0}', [("type", b"retry")]),
        (b"t", b"", []),
    ]:
        story.world.append(key, value, headers)
        story._fold(False)
    story.tell(chunk("s", 1))
    story.tell(Close("s"))
    story.tell(Close("o"))
    story.work()
    return story


STORIES: dict[str, Callable[[], Story]] = {
    "minutes": minutes,
    "silence": silence,
    "failures": failures,
    "memory": memory,
    "bad": bad,
}


def told(name: str) -> str:
    """A story as text."""
    return "\n".join(STORIES[name]().lines) + "\n"


@pytest.mark.parametrize("name", STORIES)
def test_the_fold_makes_of_a_story_what_is_written_down(name: str) -> None:
    want, have = (FOLDER / f"{name}.txt").read_text("utf-8"), told(name)
    difference = "".join(difflib.unified_diff(want.splitlines(True), have.splitlines(True), "written", "made"))
    assert not difference, difference


if __name__ == "__main__":
    for story in STORIES:
        (FOLDER / f"{story}.txt").write_text(told(story), "utf-8")
