"""Figures of files: what the object store holds of them, how jobs fare, and what a gateway counts itself."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from prometheus_client import CollectorRegistry, generate_latest

from compose.figures import by_label, share
from sinks.clickhouse.queries import FileJobs, FileStorage
from streams.files.sizes import SIZE_CLASSES
from streams.web.metrics import DIRECT_UPLOADS, PRESIGNS
from topics.files import Status

_TIMES = ("prepare_ms", "convert_ms", "verify_ms", "took_ms")


def files_section(found: FileStorage) -> dict[str, Any]:
    """What `/api/storage/stats` says of files, out of `file_jobs`."""
    count = Counter[str]()
    failures = Counter[str]()
    for jobs in found.jobs:
        count[jobs.status] += jobs.jobs
        if jobs.status == Status.FAILED:
            failures[jobs.error_type] += jobs.jobs
    done = [jobs for jobs in found.jobs if jobs.status == Status.COMPLETED]
    completed, failed = count[Status.COMPLETED], count[Status.FAILED]
    # A failed job keeps what its last attempt had uploaded: what it met then was its verification.
    refused = sum(jobs.jobs for jobs in found.jobs if jobs.status == Status.FAILED and jobs.uploaded)
    return {
        "conversions": {"objects": completed, "bytes": sum(jobs.bytes for jobs in done)},
        "uploads": {"objects": found.uploads, "bytes": found.uploads_bytes},
        "jobs": {**{status.value: count[status] for status in Status}, "success": share(completed, failed)},
        "verifications": {"passed": completed, "failed": refused, "success": share(completed, refused)},
        "failures": dict(failures.most_common()),
        "times": {
            name: _times([jobs for jobs in done if jobs.size == place]) for place, (name, _) in enumerate(SIZE_CLASSES)
        },
    }


def own_section(registry: CollectorRegistry) -> dict[str, Any]:
    """What this gateway has counted of files since it started."""
    names = [f"{name}_total" for name in (PRESIGNS, DIRECT_UPLOADS)]
    return gateway_section(generate_latest(registry.restricted_registry(names)).decode())


def gateway_section(metrics: str) -> dict[str, Any]:
    """What a gateway has counted of files since it started, out of its `/metrics`."""
    presigns, uploads = by_label(metrics, PRESIGNS, "outcome"), by_label(metrics, DIRECT_UPLOADS, "outcome")
    return {
        "presigns": _outcomes(presigns, "signed", "failed"),
        "direct_uploads": {"begun": uploads.get("begun", 0), **_outcomes(uploads, "stored", "missing", "mismatch")},
    }


def gateway_line(found: dict[str, Any]) -> str:
    """A gateway's section as text for status."""
    presigns, uploads = found["presigns"], found["direct_uploads"]
    signed = share_line(presigns["signed"], presigns["failed"])
    stored = share_line(uploads["stored"], uploads["missing"] + uploads["mismatch"])
    return f"gateway: presigned URLs signed {signed}; direct uploads {uploads['begun']:,} begun, stored in the end {stored}"


def share_line(good: int, bad: int) -> str:
    """A share as text. Rounded down: a single failure is not to read as none."""
    return f"{good * 1000 // (good + bad) / 10:.1f}% of {good + bad:,}" if good + bad else "none"


def _outcomes(found: Mapping[str, int], good: str, *bad: str) -> dict[str, Any]:
    counts = {name: found.get(name, 0) for name in (good, *bad)}
    return {**counts, "success": share(counts[good], sum(counts[name] for name in bad))}


def _times(jobs: Sequence[FileJobs]) -> dict[str, Any]:
    """Means, None without a result."""
    results = sum(like.jobs for like in jobs)
    sums = {name: sum(getattr(like, name) for like in jobs) for name in _TIMES}
    return {"results": results, **{name: sums[name] / results if results else None for name in _TIMES}}
