"""The header `producer` in the raw rows: as dead letters say it, whatever stands beside it."""

from __future__ import annotations

from streams.runtime.fold import Position
from streams.traffic.core import TrafficRules
from tests.traffic import DAY_MS, Record, batch, event, new_fold
from topics.deadletters import producer_of
from topics.headers import Headers

HEADERS: list[Headers] = [
    (),
    (("producer", b"edge"),),
    (("traceparent", b"00-1"), ("producer", b"edge")),
    (("traceparent", b"00-2"), ("producer", b"edge"), ("producer", b"second")),
    (("producer", None), ("producer", b"second")),
    (("producer", b""),),
    (("Producer", b"other"),),
    (("producer", b"\xff\xfe"),),
    (("producer", "é".encode() * 200),),
]


def test_rows_name_the_producer() -> None:
    fold = new_fold(TrafficRules(partition=0, partitions=1))
    records = [Record(i, DAY_MS, event(f"id-{i}"), b"k", headers) for i, headers in enumerate(HEADERS)]
    fold.step(batch(records, 0, len(records)))
    (table,) = fold.seal(Position(1, len(records))).rows["traffic_events_rows"]
    assert table.column("producer").to_pylist() == [producer_of(headers) for headers in HEADERS]
    assert fold.state.names.producer.nbytes == 0


def test_headers_that_differ_beside_it_are_one_word() -> None:
    fold = new_fold(TrafficRules(partition=0, partitions=1))
    headers = [(("traceparent", b"%d" % i), ("producer", b"edge")) for i in range(100)]
    fold.step(batch([Record(i, DAY_MS, event(f"id-{i}"), b"k", h) for i, h in enumerate(headers)], 0, 100))
    assert len(fold.state.names.producer) == 1
