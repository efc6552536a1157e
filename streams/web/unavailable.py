"""503: what the gateway needs does not answer, and when to ask again."""

from __future__ import annotations

from aiohttp import hdrs

from streams.web.problems import Problem
from streams.web.publisher import PublishUnavailable

#: Seconds after which to ask again, in text and as Retry-After.
RETRY_S = "2"


def unavailable(detail: str, kind: str | None = None) -> Problem:
    """A problem that passes. `detail` says when to ask again."""
    return Problem(503, detail, kind=kind, headers={hdrs.RETRY_AFTER: RETRY_S})


def owner_away(why: object) -> Problem:
    """Neither the worker that owns it nor another place tells of what was asked for."""
    return unavailable(
        f"What is known of it cannot be read now: {why}. Ask again after {RETRY_S} s.", "worker-unavailable"
    )


def unconfirmed(error: PublishUnavailable) -> Problem:
    """Kafka has not confirmed a record."""
    return unavailable(
        f"{error}. It may be recorded or not: send it again after {RETRY_S} s, which an Idempotency-Key makes safe.",
        "kafka-unavailable",
    )


def store_away() -> Problem:
    """The object store does not answer."""
    return unavailable(f"The object store does not answer; ask again after {RETRY_S} s.", "objects-unavailable")
