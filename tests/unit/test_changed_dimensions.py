"""Which dimensions are rolled up by is a setting: what was counted under another one stays counted, once, as it was."""

from __future__ import annotations

from collections import Counter

import pytest

from streams.traffic.core import TrafficRules
from tests.traffic import DAY_MS, Process, Record, World, event

LABELS = [{"region": "eu", "tenant": "a"}, {"region": "us", "tenant": "a"}, {"region": "eu"}]


def _rules(dimensions: tuple[str, ...]) -> TrafficRules:
    return TrafficRules(partition=0, partitions=1, dimensions=dimensions)


@pytest.mark.parametrize("after", [(), ("tenant",), ("region", "tenant"), ("tenant", "region")])
def test_a_restart_under_other_dimensions_keeps_what_was_counted(after: tuple[str, ...]) -> None:
    """The crash comes before ClickHouse has the rollups, so that the next process writes the earlier keys."""
    records = [Record(i, DAY_MS, event(f"e{i}", dimensions=labels)) for i, labels in enumerate(LABELS * 2)]
    world = World()
    first = Process(_rules(("region",)), world)
    first.read(records, 3)
    first.commit(first.seal())

    second = Process(_rules(after), world)
    second.read(records, 6)
    second.finish()

    expected = Counter((("region", labels["region"]),) for labels in LABELS)
    expected.update(tuple((name, labels.get(name, "")) for name in after) for labels in LABELS)
    assert {key[4]: row["requests"] for key, row in world.rollups.items()} == dict(expected)
