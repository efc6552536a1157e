"""What is held for the next flush is bounded in bytes, not only in records."""

from __future__ import annotations

import pytest

from streams.traffic.core import TrafficRules
from streams.traffic.fold import ROW_BYTES, TrafficFold
from tests.traffic import DAY_MS, Position, Record, batch, event, new_fold
from topics.records import Headers

COUNT = 50
HEAVY = 100_000


def _open(*values: bytes | None, headers: Headers = (), partitions: int = 1) -> tuple[TrafficFold, int]:
    fold = new_fold(TrafficRules(partition=0, partitions=partitions))
    records = [Record(i, DAY_MS, value, b"k", headers) for i, value in enumerate(values)]
    fold.step(batch(records, 0, len(records)))
    return fold, fold.open_rows


def test_a_plain_event_counts_as_one_row() -> None:
    plain = [event(f"id-{i}", path=f"/path/{i}", user_agent=f"curl/{i}") for i in range(1_000)]
    assert _open(*plain)[1] == 1_000


@pytest.mark.parametrize(
    ("values", "partitions"),
    [
        ([b"x" * HEAVY] * COUNT, 1),
        ([event(f"id-{i}", path=f"/{i}" + "p" * 8_000) for i in range(COUNT)], 1),
        ([event(f"id-{i}", dimensions={f"d{n}": f"{i}" + "v" * 250 for n in range(32)}) for i in range(COUNT)], 1),
        ([event(f"id-{i}", more="m" * HEAVY) for i in range(COUNT)], 64),
    ],
    ids=["dead letters", "paths", "dimensions", "sent on"],
)
def test_heavy_records_count_as_several_until_they_are_sealed(values: list[bytes], partitions: int) -> None:
    fold, rows = _open(*values, partitions=partitions)
    assert rows >= 0.9 * sum(map(len, values)) / ROW_BYTES
    fold.seal(Position(1, COUNT))
    assert fold.open_rows == 0


def test_headers_have_their_weight() -> None:
    heavy = b"t" * HEAVY
    assert _open(event("id-1"), headers=(("producer", heavy),))[1] >= HEAVY // ROW_BYTES
    assert _open(event("id-1"), headers=(("trace", heavy),))[1] == 1
    assert _open(b"rubbish", headers=(("trace", heavy),))[1] >= HEAVY // ROW_BYTES
