"""Figures out of samples and out of Prometheus metrics."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

from prometheus_client.parser import text_string_to_metric_families

#: Cumulative counts by upper bound, as a Prometheus histogram has them.
Buckets = Mapping[float, float]


def quantile(ascending: Sequence[float], q: float) -> float:
    """The smallest value that at least the share `q` of values does not exceed."""
    return ascending[max(0, math.ceil(q * len(ascending)) - 1)]


def total(metrics: str, name: str) -> float:
    """A metric's sum over all its labels; 0 if there is none."""
    return sum(
        float(line.rpartition(" ")[2]) for line in metrics.splitlines() if line.startswith((name + "{", name + " "))
    )


def by_label(metrics: str, name: str, label: str) -> dict[str, int]:
    """A counter's values (its name without `_total`) by one of its labels; empty if there is none."""
    return {
        sample.labels[label]: int(sample.value)
        for family in text_string_to_metric_families(metrics)
        if family.name == name
        for sample in family.samples
        if sample.name == name + "_total"
    }


def share(good: int, bad: int) -> float | None:
    """The good ones' share of all; None while there are none."""
    return good / (good + bad) if good + bad else None


def buckets(
    metrics: str, name: str, of: Callable[[Mapping[str, str]], bool] = lambda labels: True
) -> dict[float, float]:
    """A histogram's buckets, added up over all its labels, or those that are chosen; empty if there is none."""
    found: dict[float, float] = {}
    for family in text_string_to_metric_families(metrics):
        if family.name == name:
            for sample in family.samples:
                if sample.name == name + "_bucket" and of(sample.labels):
                    bound = float(sample.labels["le"])
                    found[bound] = found.get(bound, 0.0) + sample.value
    return found


def since(before: Buckets, after: Buckets) -> dict[float, float]:
    """What was observed between two readings of one histogram."""
    return {bound: count - before.get(bound, 0.0) for bound, count in after.items()}


def bucket_quantile(found: Buckets, q: float) -> float | None:
    """A quantile, interpolated within its bucket as Prometheus does; None without observations.

    In the last bucket, which has no end, it is that bucket's beginning.
    """
    bounds = sorted(found)
    if not bounds or not found[bounds[-1]]:
        return None
    wanted = q * found[bounds[-1]]
    below = count = 0.0
    for bound in bounds:
        if found[bound] >= wanted:
            if math.isinf(bound):
                return below
            share = (wanted - count) / (found[bound] - count) if found[bound] > count else 1.0
            return below + (bound - below) * share
        below, count = bound, found[bound]
    return below
