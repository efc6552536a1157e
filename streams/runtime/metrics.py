"""Prometheus metrics of a stream's worker; every label set is bounded by streams, partitions and outcomes."""

from __future__ import annotations

from collections.abc import Mapping

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from topics.records import Flush

_HANDLING = (0.001, 0.0025, 0.005, 0.01, 0.02, 0.03, 0.04, 0.05, 0.075, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)
_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)


class StreamMetrics:
    """All metrics of one stream, on a registry of their own."""

    def __init__(self, stream: str, registry: CollectorRegistry) -> None:
        self.stream = stream
        self.registry = registry
        by = ["stream", "partition"]
        self.records = Counter("sluiceway_records", "records read", by, registry=registry)
        self.outcomes = Gauge(
            "sluiceway_outcomes",
            "records by outcome (accepted, duplicate, late, rerouted, dead, ...), committed since the fold began",
            [*by, "outcome"],
            registry=registry,
        )
        self.fold_seconds = Counter("sluiceway_fold_seconds", "seconds spent folding", by, registry=registry)
        self.handling_seconds = Histogram(
            "sluiceway_handling_seconds",
            "a fetch, from its arrival to folded",
            by,
            registry=registry,
            buckets=_HANDLING,
        )
        self.seal_seconds = Counter("sluiceway_seal_seconds", "seconds spent encoding flushes", by, registry=registry)
        self.flush_seconds = Histogram(
            "sluiceway_flush_seconds", "a flush, from seal to commit", by, registry=registry, buckets=_SECONDS
        )
        self.transaction_seconds = Histogram(
            "sluiceway_transaction_seconds", "a flush's transaction", by, registry=registry, buckets=_SECONDS
        )
        self.changelog_bytes = Counter(
            "sluiceway_changelog_bytes", "bytes written to the changelog", by, registry=registry
        )
        self.restore_seconds = Gauge("sluiceway_restore_seconds", "the last restore", by, registry=registry)
        self.restore_bytes = Gauge(
            "sluiceway_restore_bytes", "changelog bytes read by the last restore", by, registry=registry
        )
        self.read_lag = Gauge("sluiceway_read_lag", "offsets between the log's end and the fold", by, registry=registry)
        self.commit_lag = Gauge(
            "sluiceway_commit_lag", "offsets between the log's end and the commit", by, registry=registry
        )
        self.state = Gauge("sluiceway_state", "sizes of a fold's state, by name", [*by, "name"], registry=registry)
        self.sink_available = Gauge(
            "sluiceway_sink_available", "1 while ClickHouse answers", ["stream"], registry=registry
        )

    def partition(self, partition: int) -> PartitionMetrics:
        """The metrics of one partition."""
        return PartitionMetrics(self, partition)

    def forget(self, partition: int) -> None:
        """Drop the gauges of a partition that moved elsewhere: its new owner tells them."""
        for gauge in (self.read_lag, self.commit_lag, self.outcomes, self.state):
            gauge.remove_by_labels({"stream": self.stream, "partition": str(partition)})

    def sink(self, available: bool) -> None:
        """Whether the sink takes writes."""
        self.sink_available.labels(self.stream).set(float(available))


class PartitionMetrics:
    """What one partition reports, bound to its labels."""

    def __init__(self, owner: StreamMetrics, partition: int) -> None:
        self._owner = owner
        self._labels = (owner.stream, str(partition))
        self._records = owner.records.labels(*self._labels)
        self._fold_seconds = owner.fold_seconds.labels(*self._labels)
        self._handling_seconds = owner.handling_seconds.labels(*self._labels)
        self._changelog_bytes = owner.changelog_bytes.labels(*self._labels)

    def folded(self, records: int, seconds: float, handling_seconds: float) -> None:
        """A batch was folded in `seconds`, `handling_seconds` after it was fetched."""
        self._records.inc(records)
        self._fold_seconds.inc(seconds)
        self._handling_seconds.observe(handling_seconds)

    def sealed(self, seconds: float) -> None:
        """A flush was encoded."""
        self._owner.seal_seconds.labels(*self._labels).inc(seconds)

    def flushed(self, seconds: float, transaction_seconds: float, flush: Flush) -> None:
        """A flush was committed."""
        self._owner.flush_seconds.labels(*self._labels).observe(seconds)
        self._owner.transaction_seconds.labels(*self._labels).observe(transaction_seconds)
        self._changelog_bytes.inc(sum(len(key) + len(value or b"") for key, value in flush.changelog))

    def restored(self, seconds: float, size: int) -> None:
        """A take-over restored `size` bytes of changelog."""
        self._owner.restore_seconds.labels(*self._labels).set(seconds)
        self._owner.restore_bytes.labels(*self._labels).set(size)

    def lags(self, read: int, commit: int) -> None:
        """Offsets between the log's end and the fold, and the commit."""
        self._owner.read_lag.labels(*self._labels).set(read)
        self._owner.commit_lag.labels(*self._labels).set(commit)

    def figures(self, figures: Mapping[str, float]) -> None:
        """A fold's own figures: names that start with `outcome_` are totals, the others sizes."""
        for name, value in figures.items():
            if name.startswith("outcome_"):
                self._owner.outcomes.labels(*self._labels, name.removeprefix("outcome_")).set(value)
            else:
                self._owner.state.labels(*self._labels, name).set(value)
