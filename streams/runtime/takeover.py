"""What a new owner of a partition may start from: pure decisions over what the changelog and the log say."""

from __future__ import annotations

from dataclasses import dataclass

from streams.runtime.admin import TopicIdentity
from streams.runtime.changelog import Meta


class LogLost(RuntimeError):
    """Records were removed from the log before they were folded; the message says which."""


class PartitionsChanged(RuntimeError):
    """The source topic has another partition count than the fold was made with."""


@dataclass(frozen=True)
class LogBounds:
    """A source partition's first retained offset and the next one to be written."""

    start: int
    end: int


def begin(meta: Meta | None, identity: TopicIdentity, bounds: LogBounds, where: str, accept_loss: bool) -> Meta:
    """The `Meta` of a new term: same epoch on the same topic, a higher one on a re-created topic.

    Raises PartitionsChanged, and LogLost for a log that starts after the cursor or ends before it, unless `accept_loss`.
    """
    if meta is None:
        return Meta(identity.topic_id, identity.partitions, epoch=1, term=1, cursor=bounds.start)
    check_count(meta, identity, where)
    same = meta.topic_id == identity.topic_id
    cursor = meta.cursor if same else 0
    epoch = meta.epoch if same else meta.epoch + 1
    problem = _lost(cursor, bounds, same)
    if problem is not None:
        if not accept_loss:
            raise LogLost(f"{where}: {problem}. Set SLUICEWAY_ACCEPT_LOSS=true once to go on without them")
        cursor = bounds.start if cursor < bounds.start else bounds.end
        epoch = meta.epoch + 1
    return Meta(identity.topic_id, identity.partitions, epoch, meta.term + 1, cursor)


def check_count(meta: Meta, identity: TopicIdentity, where: str) -> None:
    """Raise PartitionsChanged for a topic with another partition count than the fold's: ids would meet another memory."""
    if meta.partitions != identity.partitions:
        raise PartitionsChanged(
            f"{where}: the topic has {identity.partitions} partitions, its fold was made with {meta.partitions}, and an id "
            f"would meet the memory of another partition. Make the topic anew with {meta.partitions} partitions: what is "
            "counted stays counted, records not yet read are lost"
        )


def _lost(cursor: int, bounds: LogBounds, same: bool) -> str | None:
    if bounds.start > cursor:
        count = bounds.start - cursor
        new = "" if same else " of the re-created topic"
        return f"the log{new} starts at {bounds.start}: offsets {cursor} to {bounds.start - 1} ({count}) are lost"
    if bounds.end < cursor:
        return (
            f"the log ends at {bounds.end}, before the cursor {cursor}: it was truncated, and newer records may be lost"
        )
    return None
