"""What folds do with records that are not theirs to fold: dead letters of what cannot be used, and the way to another partition.

Pure. Of a fold's state it wants what `Writing` names.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Protocol

from topics.headers import Headers
from topics.malformed import Malformed
from topics.records import Batch, DeadLetter, Emit, Record, Unreadable
from topics.rerouting import sent_on


class Rules(Protocol):
    """`record_bytes_max` is what the source topic takes of one record beside its headers."""

    @property
    def source(self) -> str: ...

    @property
    def partition(self) -> int: ...

    @property
    def record_bytes_max(self) -> int: ...


class Writing(Protocol):
    """The part of a state that the next flush writes."""

    @property
    def rules(self) -> Rules: ...

    @property
    def emits(self) -> list[Emit]: ...

    @property
    def dead(self) -> list[DeadLetter]: ...

    @property
    def totals(self) -> Counter[str]: ...


class Origin(Protocol):
    """The record by which something began."""

    @property
    def value(self) -> bytes: ...

    @property
    def headers(self) -> Headers: ...

    @property
    def offset(self) -> int: ...

    @property
    def append_ms(self) -> int: ...


def bury(state: Writing, record: Record, reason: str, error: str) -> None:
    """A dead letter of a record."""
    state.dead.append(DeadLetter.of_record(state.rules.source, state.rules.partition, record, reason, error))
    state.totals["dead"] += 1
    state.totals["malformed"] += 1


def bury_unreadable(state: Writing, batch: Batch, pieces: Sequence[Unreadable]) -> None:
    """Dead letters of bytes that are no records."""
    for piece in pieces:
        state.dead.append(DeadLetter.unreadable(batch, piece, piece.error))
        state.totals["dead"] += 1


def bury_origin(state: Writing, key: str, origin: Origin, reason: str, error: str, attempts: int) -> None:
    """A dead letter of the record that asked for what has failed, after so many attempts (one at least is told)."""
    where = (state.rules.source, state.rules.partition, origin.offset, origin.append_ms)
    letter = DeadLetter(reason, error, *where, key.encode(), origin.value, origin.headers, max(1, attempts))
    state.dead.append(letter)
    state.totals["dead"] += 1
    state.totals[f"error_{reason}"] += 1


def send_on(state: Writing, record: Record, to: int) -> None:
    """Write a record that lies in the wrong partition into its own, once."""
    rules = state.rules
    emit = sent_on(rules.source, rules.partition, record, to, rules.record_bytes_max)
    if isinstance(emit, Malformed):
        bury(state, record, emit.reason, emit.error)
    else:
        state.emits.append(emit)
        state.totals["rerouted"] += 1
