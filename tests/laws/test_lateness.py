"""However the lateness is set from restart to restart, no event counts twice and no closed hour is begun anew."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from streams.traffic.core import TrafficRules
from streams.traffic.lateness import Lateness
from tests.traffic import DAY_MS, HOUR_MS, Process, Record, World, event

HOURS = st.integers(1, 6)


@dataclass(frozen=True)
class _Life:
    """One life of the worker: its settings, and how far the clock goes between the records it reads."""

    lateness_h: int
    dedup_more_h: int
    early_h: int
    steps: list[tuple[int, int]]  # minutes on, which event comes


LIVES = st.lists(
    st.builds(
        _Life,
        lateness_h=HOURS,
        dedup_more_h=st.integers(0, 2),
        early_h=st.integers(0, 3),
        steps=st.lists(st.tuples(st.sampled_from([0, 1, 20, 59, 60, 61, 150]), st.integers(0, 30)), max_size=12),
    ),
    min_size=1,
    max_size=6,
)


@settings(max_examples=300, deadline=None)
@given(LIVES)
def test_an_event_counts_once_under_any_settings(lives: list[_Life]) -> None:
    world, records, append_ms = World(), [], DAY_MS
    for life in lives:
        rules = TrafficRules(
            partition=0,
            partitions=1,
            lateness_h=life.lateness_h,
            dedup_h=life.lateness_h + life.dedup_more_h,
            early_h=life.early_h,
        )
        process = Process(rules, world)
        for minutes, which in life.steps:
            append_ms += minutes * 60_000
            # An event always bears the same time, 20 minutes after the one before it.
            records.append(Record(len(records), append_ms, event(f"e{which}", DAY_MS + which * 20 * 60_000)))
            process.read(records, len(records))
            process.finish()
    ids = Counter(row["event_id"] for row in world.events.values())
    assert not [name for name, count in ids.items() if count > 1]
    hours = Counter(row["timestamp_ms"] // HOUR_MS * 3600 for row in world.events.values())
    assert {row["hour"]: row["requests"] for row in world.rollups.values()} == hours


@given(st.lists(HOURS, min_size=2, max_size=6), st.lists(st.integers(0, 5 * HOUR_MS), min_size=1, max_size=12))
def test_the_oldest_time_never_steps_back(settings_h: list[int], steps_ms: list[int]) -> None:
    lateness, clock, last = Lateness(settings_h[0], settings_h[0]), DAY_MS, 0
    for at, step in enumerate(steps_ms):
        clock += step
        lateness = lateness.under(settings_h[at % len(settings_h)], clock, clock + HOUR_MS)
        oldest = int(lateness.oldest_ms(clock))
        assert last <= oldest <= clock
        last = oldest


def test_a_raised_limit_holds_once_the_older_times_have_passed() -> None:
    lateness = Lateness(24, 24).under(72, DAY_MS, DAY_MS + HOUR_MS)
    clocks = DAY_MS + np.array([0, 24, 25, 48, 73, 74, 200]) * HOUR_MS
    ages_h = (clocks - lateness.oldest_ms(clocks)) // HOUR_MS
    assert ages_h.tolist() == [24, 24, 24, 47, 72, 72, 72]
    assert lateness.under(72, DAY_MS + 30 * HOUR_MS, DAY_MS + 31 * HOUR_MS) == lateness, "a restart in between"
