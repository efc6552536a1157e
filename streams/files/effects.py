"""What the fold asks of the world, as values. What an attempt is about is read from the fold when it begins."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Convert:
    """Make an attempt: find the source, sign the upload, have it converted and uploaded."""

    job_id: str
    term: int
    attempt: int


@dataclass(frozen=True)
class Verify:
    """Complete an attempt's upload and look whether the store holds the result."""

    job_id: str
    term: int
    attempt: int


@dataclass(frozen=True)
class Abandon:
    """End what is under way of a job: nobody wants its result."""

    job_id: str


@dataclass(frozen=True)
class Sweep:
    """Remove what attempts that did not win have left in the bucket; `last`: none of their URLs works any more."""

    job_id: str
    last: bool


@dataclass(frozen=True)
class Wake:
    """Say so, with an idle record, when so much time has passed; a later wish replaces it."""

    after_ms: int


Effect = Convert | Verify | Abandon | Sweep | Wake
