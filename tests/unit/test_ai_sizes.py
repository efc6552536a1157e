"""Whatever a model or a producer says, what is written of it fits its topics."""

from __future__ import annotations

from dataclasses import replace

import pytest

from compose.settings import SettingError, Settings
from tests.aifold import RULES, World, submit
from topics.ai import (
    MAX_ANSWER_BYTES,
    MAX_BLOCK_BYTES,
    MAX_ERROR_CHARS,
    MAX_QUESTION_BYTES,
    MAX_RECORD_BYTES,
    Answered,
    Block,
    CallFailed,
    Kind,
    Outcome,
    Status,
    Usage,
    encode,
)
from topics.specs import AI_RESULTS, outcomes

#: A control character takes six bytes of JSON, this one three of UTF-8.
CONTROL, WIDE = "\x01", "\u4e00"
EVENT_BYTES = int(outcomes(AI_RESULTS, 1, 1).configs["max.message.bytes"]) - 1_000


def _written(world: World) -> tuple[int, int]:
    """The largest record of the events and of the changelog."""
    flush = world.fold.seal(world.fold._position.__class__(1, world.folded))
    events = [len(emit.value or b"") for emit in flush.emits]
    return max(events, default=0), max(len(key) + len(value or b"") for key, value in flush.changelog)


@pytest.mark.parametrize("character", ["a", CONTROL, WIDE])
def test_the_largest_blocks_fit(character: str) -> None:
    text = character * (MAX_BLOCK_BYTES // len(character.encode()))
    world = World(replace(RULES, segment_chars=MAX_QUESTION_BYTES))
    world.say(submit("a"))
    world.settle_log()
    records = [Block("a", 0, 1, 1, n, Kind.ANSWER, text) for n in range(MAX_ANSWER_BYTES // MAX_BLOCK_BYTES)]
    assert max(len(encode(record).value) for record in records) < MAX_RECORD_BYTES
    for record in records:
        world.say(record)
    world.say(Answered("a", 0, 1, 1, len(records), True, 1, Usage()))
    world.read()
    events, changelog = _written(world)
    assert events < EVENT_BYTES and changelog < MAX_RECORD_BYTES
    assert world.fold.state.tasks["a"].result == text * len(records)


def test_the_largest_error_and_the_largest_question_fit() -> None:
    world = World(replace(RULES, segment_chars=500))
    world.say(submit("a", question=CONTROL + "a" * (MAX_QUESTION_BYTES - 1)))
    world.settle_log()
    world.say(CallFailed("a", 0, 1, 1, "server_error", CONTROL * MAX_ERROR_CHARS, None, 1))
    world.read()
    assert world.fold.state.tasks["a"].status is Status.FAILED
    events, changelog = _written(world)
    assert events < EVENT_BYTES and changelog < MAX_RECORD_BYTES


def test_what_a_gateway_answered_is_told_in_pieces() -> None:
    world = World(replace(RULES, segment_chars=MAX_QUESTION_BYTES))
    text = CONTROL * 100_000
    world.say(Outcome("a", Status.COMPLETED, result=text, submit=submit("a")))
    world.read()
    events, changelog = _written(world)
    assert events < EVENT_BYTES and changelog < MAX_RECORD_BYTES
    assert world.fold.state.tasks["a"].result == text


@pytest.mark.parametrize(("chars", "overlap"), [(400, 0), (1_000, 501), (1_000, -1)])
def test_segments_that_would_be_too_many_are_refused(chars: int, overlap: int) -> None:
    with pytest.raises(SettingError, match="AI_SEGMENT"):
        Settings(ai_segment_chars=chars, ai_segment_overlap_chars=overlap)
