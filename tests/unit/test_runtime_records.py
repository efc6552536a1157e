"""No flush makes a record that the changelog refuses: such a one would stop its partition for good."""

from __future__ import annotations

import random
import string

import pytest

from streams.traffic import delta
from streams.traffic.core import TrafficRules
from tests.traffic import DAY_MS, Process, Record, World, content, event
from topics import specs
from topics.traffic import MAX_PATH_CHARS

RULES = TrafficRules(partition=0, partitions=1)
#: What a flush adds beside the records: framing and compression that gains nothing.
_ROOM = 65_536


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
    limit = int(specs.changelog("c", 1).configs["max.message.bytes"]) - _ROOM
    sizes = [len(key) + len(value or b"") for key, value in process.seal().changelog]
    assert sum(sizes) > 2 * limit, "the flood is heavier than any record may be"
    assert max(sizes) < limit


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
