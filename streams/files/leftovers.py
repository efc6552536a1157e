"""What of the bucket's conversions nobody needs any more: decided for each object and upload from what is known of its job.

Pure. In doubt all is kept. A key of `converted/` names the time at which its job was submitted: of the jobs of that time one may
name it as its result; if they are all over and none does, it is of an attempt that did not win.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from topics.files import Status
from topics.files_keys import CONVERTED, UPLOADS

_KEY = re.compile(rf"{CONVERTED}(\d{{1,16}})_[0-9a-f]{{12}}_[^/]+")


@dataclass(frozen=True)
class JobFacts:
    """A job as ClickHouse has it; `result` is empty as long as there is none."""

    status: Status
    result: str


class Verdict(StrEnum):
    """Why an object or upload goes (`REMOVED`) or stays."""

    LOST = "another attempt of its job won, or its job has no result"
    GIVEN_UP = "its upload was given up"
    RESULT = "it is its job's result"
    LIVE = "its job is not over"
    UNKNOWN = "nothing is known of it"


REMOVED = frozenset({Verdict.LOST, Verdict.GIVEN_UP})


def submitted_ms_of(key: str) -> int | None:
    """When the job of a result was submitted; None for a key that is not the product's."""
    found = _KEY.fullmatch(key)
    return int(found[1]) if found else None


def judge_object(key: str, jobs: Sequence[JobFacts]) -> Verdict:
    """What becomes of an object below `converted/`; `jobs` are those that were submitted when its own was."""
    if any(job.result == key for job in jobs):
        return Verdict.RESULT
    if not jobs:
        return Verdict.UNKNOWN
    return Verdict.LOST if all(job.status.final for job in jobs) else Verdict.LIVE


def judge_upload(key: str, jobs: Sequence[JobFacts]) -> Verdict:
    """What becomes of a multipart upload that was begun and not ended."""
    if key.startswith(UPLOADS):
        return Verdict.GIVEN_UP
    verdict = judge_object(key, jobs)
    return Verdict.GIVEN_UP if verdict in (Verdict.RESULT, Verdict.LOST) else verdict
