"""What a stream has done in the world beyond its tables: uploads, calls of a model, conversions.

A fold only asks, by effects: values that a flush carries and the table keeps until their outcome is folded. They begin once
that flush has committed, and again at a take-over that finds them undone, so an effect may be done more than once and must
bear it. What came of one enters as a record of the same partition, written inside the partition's next transaction: an
owner that was fenced can report nothing, and the log's order decides what an outcome meets.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from topics.records import Emit


@dataclass(frozen=True)
class Seat:
    """One partition in its owner's hands. `report` hands in records of the source partition for the next flush; `fail`
    gives up the process, for what must not happen; `reach` passes a fault point (see `faults`)."""

    partition: int
    term: int
    report: Callable[[Sequence[Emit]], None]
    fail: Callable[[BaseException], None]
    reach: Callable[[str], None] = lambda point: None


class Outside(Protocol):
    """Does the effects of one partition, on the worker's event loop."""

    def begin(self, effects: Sequence[Any]) -> None:
        """Start to do these; returns at once."""

    def close(self) -> None:
        """Stop what is under way, without waiting for it; its effects stay undone and are the next owner's."""
