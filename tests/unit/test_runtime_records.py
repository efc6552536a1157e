"""No flush makes a record that the changelog refuses: such a one would stop its partition for good."""

from __future__ import annotations

import random
import string
from collections import Counter

import msgspec
import pytest

from streams.audio.pending import Piece
from streams.audio.session import Saved, Segment
from streams.audio.session import encode as encode_session
from streams.traffic import delta
from streams.traffic.core import TrafficRules
from tests import audiofold
from tests.traffic import DAY_MS, Process, Record, World, content, event
from topics import specs
from topics.traffic import MAX_PATH_CHARS

RULES = TrafficRules(partition=0, partitions=1)
#: What a flush adds beside the records: framing and compression that gains nothing.
_ROOM = 65_536
_LIMIT = int(specs.changelog("c", 1).configs["max.message.bytes"]) - _ROOM


def _flood(count: int, path_chars: int) -> list[Record]:
    """Requests of a scanner: every path another one, as long as may be, and no text that compresses."""
    rng = random.Random(7)
    letters = string.ascii_letters + string.digits
    return [
        Record(
            i,
            DAY_MS,
            event(
                f"e{i}",
                path="/" + "".join(rng.choices(letters, k=path_chars - 1)),
                client_ip=f"10.0.{i // 250}.{i % 250}",
                response_time_ms=float(i),
            ),
        )
        for i in range(count)
    ]


def _one_path(count: int) -> list[Record]:
    return [
        Record(i, DAY_MS, event(f"e{i}", client_ip=f"10.0.{i // 250}.{i % 250}", response_time_ms=float(i % 97)))
        for i in range(count)
    ]


def test_a_flood_of_long_paths_fits_the_changelog() -> None:
    process = Process(RULES, World())
    process.read(_flood(1_000, MAX_PATH_CHARS), 1_000)
    sizes = [len(key) + len(value or b"") for key, value in process.seal().changelog]
    assert sum(sizes) > 2 * _LIMIT, "the flood is heavier than any record may be"
    assert max(sizes) < _LIMIT


@pytest.mark.parametrize("records", [_flood(300, 40), _one_path(2_000)], ids=["many keys", "one key"])
def test_a_delta_in_pieces_restores_as_a_whole_one(records: list[Record], monkeypatch: pytest.MonkeyPatch) -> None:
    whole = Process(RULES, World())
    whole.read(records, len(records))
    whole.commit(whole.seal())

    monkeypatch.setattr(delta, "RECORD_BYTES", 900)
    world = World()
    cut = Process(RULES, world)
    cut.read(records, len(records))
    flush = cut.seal()
    pieces = [value for key, value in flush.changelog if key[:1] == b"r"]
    assert len(pieces) > 10
    assert max(len(value or b"") for value in pieces) <= 900
    cut.commit(flush)

    assert content(Process(RULES, world).fold) == content(cut.fold) == content(whole.fold)


@pytest.mark.parametrize("every_ms", [0, 8], ids=["at once", "cut on the way"])
def test_a_session_of_nothing_but_gaps_fits_the_changelog_with_the_longest_errors(every_ms: int) -> None:
    world = audiofold.World(fails=True, error="\N{OGHAM LETTER BEITH}" * 1_000)
    rules = world.rules
    world.say(audiofold.opened())
    for seq in range(0, 24_000, 2):
        world.say(audiofold.chunk("s", seq, data=b"ab"), after_ms=every_ms)
    world.settle()
    audiofold.assert_bounded(world)
    world.idle(rules.silence_ms)
    world.settle()
    audiofold.assert_whole(world)
    saved = world.saved()["s"]
    assert len(saved.segments) == len(saved.ranges) == rules.segments_max
    assert {(s.kept.name, len(s.error.encode())) for s in saved.segments} == {("FAILED", 198)}
    assert len(world.changelog[b"ss"]) < _LIMIT
    assert len(encode_session(_widest(saved, rules.pending_max))) < _LIMIT
    # The audio that came before is good: asked for again, it is all there.
    letters = Counter(letter.reason for letter in world.dead)
    assert letters == {"too_many_segments": 12_000 - rules.segments_max, "segment_failed": rules.segments_max}
    world.fails = False
    for segment in saved.segments:
        world.append(b"s", b'{"first_seq":%d}' % segment.first_seq, [("type", b"retry"), ("replay", bytes(1_000))])
    world.say(audiofold.Close("s"))
    world.settle()
    assert len(world.recordings["s"].sources) == rules.segments_max
    assert not any(segment.replay for segment in world.saved()["s"].segments)


def test_a_session_of_the_smallest_chunks_fits_the_changelog() -> None:
    world = audiofold.World()
    world.say(audiofold.opened())
    for seq in range(40_000):
        world.say(audiofold.chunk("s", seq, data=b"ab"))
        if seq % 1_000 == 0:
            world.read()
            audiofold.assert_bounded(world)
    world.settle()
    assert [(s.first_seq, s.last_seq) for s in world.saved()["s"].segments] == [(0, 15_999), (16_000, 31_999)]
    assert not world.dead


def _widest(saved: Saved, pending: int) -> Saved:
    """A snapshot as long as this one may become: numbers of nine bytes, and all texts as long as they are kept."""
    most = (1 << 63) - 1
    numbers = ("first_seq", "last_seq", "first_offset", "last_offset", "size", "duration_us")
    numbers = (*numbers, "attempts", "object_size", "updated_ms")
    texts = {"md5": bytes(16), "error": "e" * 200, "replay": bytes(200)}
    wide: list[Segment] = [
        msgspec.structs.replace(segment, **dict.fromkeys(numbers, most), **texts) for segment in saved.segments
    ]
    ranges = [[most, most] for _ in saved.ranges]
    return msgspec.structs.replace(saved, segments=wide, ranges=ranges, pending=[Piece(*[most] * 5)] * pending)
