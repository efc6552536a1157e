"""Where a new owner may start: the same epoch on the same log, a higher one on another, and never over a gap unasked."""

from __future__ import annotations

from dataclasses import replace

import pytest

from streams.runtime.admin import TopicIdentity
from streams.runtime.changelog import Meta, decode_meta
from streams.runtime.takeover import LogBounds, LogLost, PartitionsChanged, begin

TOPIC = TopicIdentity("id-1", 4)
ANEW = replace(TOPIC, topic_id="id-2")
STORED = Meta("id-1", 4, epoch=3, term=7, cursor=100)


def _begin(
    meta: Meta | None, start: int, end: int, identity: TopicIdentity = TOPIC, *, accept_loss: bool = False
) -> Meta:
    return begin(meta, identity, LogBounds(start, end), "traffic.events.v1[2]", accept_loss)


def test_the_first_owner_starts_where_the_log_does() -> None:
    assert _begin(None, 40, 90) == Meta("id-1", 4, epoch=1, term=1, cursor=40)


@pytest.mark.parametrize(("start", "end"), [(0, 100), (0, 500), (100, 100), (100, 500)])
def test_the_next_owner_goes_on_from_the_cursor(start: int, end: int) -> None:
    assert _begin(STORED, start, end) == Meta("id-1", 4, epoch=3, term=8, cursor=100)


@pytest.mark.parametrize("end", [0, 5, 100, 5000])
def test_a_topic_made_anew_is_read_from_its_beginning_in_a_higher_epoch(end: int) -> None:
    assert _begin(STORED, 0, end, ANEW) == Meta("id-2", 4, epoch=4, term=8, cursor=0)


def test_a_log_that_starts_after_the_cursor_stops_the_worker_and_says_what_is_lost() -> None:
    with pytest.raises(LogLost, match=r"events\.v1\[2\]: .*offsets 100 to 119 \(20\) are lost.*ACCEPT_LOSS=true"):
        _begin(STORED, 120, 500)
    assert _begin(STORED, 120, 500, accept_loss=True) == Meta("id-1", 4, epoch=4, term=8, cursor=120)


def test_a_topic_made_anew_that_lost_its_beginning_stops_the_worker_too() -> None:
    with pytest.raises(LogLost, match=r"re-created topic starts at 9: offsets 0 to 8 \(9\) are lost"):
        _begin(STORED, 9, 500, ANEW)
    lost = _begin(STORED, 9, 500, ANEW, accept_loss=True)
    assert (lost.topic_id, lost.cursor) == ("id-2", 9)
    assert lost.epoch > STORED.epoch


def test_a_log_that_ends_before_the_cursor_was_truncated() -> None:
    with pytest.raises(LogLost, match="ends at 60, before the cursor 100: it was truncated"):
        _begin(STORED, 0, 60)
    assert _begin(STORED, 0, 60, accept_loss=True) == Meta("id-1", 4, epoch=4, term=8, cursor=60)


@pytest.mark.parametrize("identity", [replace(TOPIC, partitions=6), replace(ANEW, partitions=2)])
def test_another_partition_count_is_refused_whatever_may_be_lost(identity: TopicIdentity) -> None:
    with pytest.raises(PartitionsChanged, match=f"has {identity.partitions} partitions, its fold was made with 4"):
        _begin(STORED, 0, 500, identity, accept_loss=True)


def test_meta_is_stored_whole() -> None:
    assert decode_meta(STORED.encode()) == STORED
