"""What decides a job's course, and how a limit of all partitions is shared among them."""

from __future__ import annotations

from dataclasses import dataclass

from topics.files import MAX_RECORD_BYTES
from topics.specs import FILES_JOBS, FILES_PROGRESS


@dataclass(frozen=True, kw_only=True)
class FilesRules:
    """Times in milliseconds. At most `concurrency` attempts run at once, of all partitions together, and `per_user` of one
    user in a partition; `waiting_max` of a user's jobs may wait in one.

    An attempt is made at most `retries_max` times more after errors, and `lost_max` times after the death of an owner. What
    attempts have left is swept when a job ends and again `sweep_after_ms` later, when no URL of theirs works any more. An
    ended job is remembered for `remember_ms`. Sources by `url` are refused unless `urls`.
    """

    partition: int
    partitions: int
    concurrency: int = 4
    per_user: int = 2
    waiting_max: int = 1_000
    retries_max: int = 2
    lost_max: int = 10
    sweep_after_ms: int = 4_500_000
    remember_ms: int = 7 * 86_400_000
    urls: bool = False
    record_bytes_max: int = MAX_RECORD_BYTES
    source: str = FILES_JOBS
    events: str = FILES_PROGRESS

    @property
    def slots(self) -> int:
        """This partition's share of the attempts at once: its part of the limit, the first ones having the remainder, and
        at least one, so that none starves. A limit below the number of partitions is thus that number."""
        return max(1, self.concurrency // self.partitions + (self.partition < self.concurrency % self.partitions))
