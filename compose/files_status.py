"""What `sluiceway status` says of file jobs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from compose.files_figures import share_line
from streams.files.sizes import SIZE_CLASSES

#: Steps of a conversion that pass or fail, and what a result's size is called in figures.
_FILE_STEPS = ("presigns", "uploads", "verifications")
_FILE_STAGES = ("prepare", "convert", "verify")
_FILE_SIZES = dict(zip((name for name, _ in SIZE_CLASSES), ("< 10 MB", "10-100 MB", "> 100 MB"), strict=True))


def jobs_of(parts: Sequence[dict[str, Any]], workers: Sequence[dict[str, Any]]) -> list[str]:
    """What has become of file jobs, in lines; `parts` are all partitions, as their owners' status has them, and `workers` the
    processes that coordinate them."""
    sums = Counter[str]()
    for part in parts:
        sums.update({name: int(value) for name, value in part["figures"].items()})
    ended = ", ".join(f"{sums[f'outcome_{name}']:,} {name}" for name in ("completed", "failed", "cancelled"))
    passed = [(step, sums[f"outcome_{step}_passed"], sums[f"outcome_{step}_failed"]) for step in _FILE_STEPS]
    steps = ", ".join(f"{step} {share_line(good, bad)}" for step, good, bad in passed)
    running = f"{sums['attempts_running']:,} converting, {sums['jobs_waiting']:,} waiting"
    lines = [f"files: jobs {running}; {ended}; passed of {steps}"]
    for size, said in _FILE_SIZES.items():
        if count := sums[f"outcome_results_{size}"]:
            means = ", ".join(f"{stage} {sums[f'{stage}_{size}_ms'] / count:,.0f} ms" for stage in _FILE_STAGES)
            lines.append(f"files: {count:,} results of {said}, on average {means}")
    cpu_s, rss = sum(worker["cpu_s"] for worker in workers), sum(worker["rss_bytes"] for worker in workers)
    lines.append(f"files: {len(workers)} coordinators with {cpu_s:,.1f} s of CPU and {rss / 1e6:,.0f} MB of memory")
    return lines
