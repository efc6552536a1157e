"""What a fold tells of itself, for metrics and status: numbers that it has, and one pass over its sessions.

They are asked for several times a second, so that nothing of a session is looked at that grows with its length.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from streams.audio.held import Budget, Shelf
from streams.audio.session import Session, Status

#: Segments and recordings that are to be stored, of all that were tried to the end.
UPLOAD_SUCCESS_MIN = 0.999
#: From a chunk's fetch to its fold, 99 of 100 fetches.
HANDLING_LIMIT_S = 0.05
#: Of a worker's memory for audio, what may be held or promised before it is time to add memory or workers.
MEMORY_SHARE_MAX = 0.8

#: Totals that are no counts of records: bytes in the object store, ended sessions and how long they were together.
_SUMS = {"segment_bytes", "recording_bytes", "sessions_ended", "session_ms"}


def of_totals(totals: Mapping[str, int]) -> dict[str, float]:
    """Outcomes since the stream began, and what follows from them."""
    found = {name if name in _SUMS else f"outcome_{name}": float(sum_) for name, sum_ in totals.items()}
    found["integrity_failures"] = float(totals.get("spoiled", 0) + totals.get("damaged", 0))
    success = upload_success(found)
    return found if success is None else {**found, "upload_success": success}


def upload_success(figures: Mapping[str, float]) -> float | None:
    """The share of segments and recordings that were stored; None while there was none. `figures` may be sums of several."""
    stored = figures.get("outcome_stored", 0) + figures.get("outcome_recorded", 0)
    failed = figures.get("outcome_failed", 0) + figures.get("outcome_unrecorded", 0)
    return stored / (stored + failed) if stored + failed else None


def of_sessions(sessions: Iterable[Session]) -> dict[str, float]:
    """How many there are of which kind. `gaps` are the seqs of open ones that have not come."""
    opened = closing = remembered = deferred = unstored = gaps = 0
    for session in sessions:
        remembered += 1
        if session.status is Status.OPEN:
            opened += 1
            if session.ranges:
                gaps += session.ranges[-1][1] + 1 - session.taken
        elif session.status is Status.CLOSING:
            closing += 1
        else:
            continue
        deferred += session.deferred
        unstored += len(session.intents)
    return {
        "sessions_open": float(opened),
        "sessions_closing": float(closing),
        "sessions_remembered": float(remembered),
        "sessions_deferred": float(deferred),
        "segments_unstored": float(unstored),
        "gaps": float(gaps),
    }


def of_memory(shelf: Shelf, budget: Budget) -> dict[str, float]:
    """Bytes held and promised, of the partition and of its worker; `worker_memory_high` is 1 above `MEMORY_SHARE_MAX`."""
    held, reserved = budget.held, budget.reserved
    share = max(held, reserved) / budget.capacity
    return {
        "held_bytes": float(shelf.held),
        "reserved_bytes": float(shelf.reserved),
        "worker_held_bytes": float(held),
        "worker_reserved_bytes": float(reserved),
        "worker_budget_bytes": float(budget.capacity),
        "worker_memory_share": share,
        "worker_memory_high": float(share > MEMORY_SHARE_MAX),
        "worker_dropped_segments": float(budget.dropped),
    }
