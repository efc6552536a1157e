"""The gateway's own figures."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

#: A chunk's way until Kafka has it, 99 of 100 of them.
DURABLE_LIMIT_S = 0.1
#: What the gateway says about a session when it is asked, 99 of 100 answers.
RESPONSE_LIMIT_S = 0.1
PRESIGNS, DIRECT_UPLOADS = "sluiceway_gateway_presigns", "sluiceway_gateway_direct_uploads"
REQUEST_BYTES = "sluiceway_gateway_request_bytes"


class GatewayMetrics:
    """Counters of one gateway, in the registry that `/metrics` shows."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.requests = Counter(
            "sluiceway_gateway_requests", "HTTP requests answered", ("method", "route", "status"), registry=registry
        )
        self.request_seconds = Histogram(
            "sluiceway_gateway_request_seconds", "Time to answer an HTTP request", ("route",), registry=registry
        )
        self.request_bytes = Counter(
            REQUEST_BYTES, "Bytes of the bodies of HTTP requests, once these have ended", registry=registry
        )
        self.in_flight = Gauge(
            "sluiceway_gateway_requests_in_flight", "HTTP requests being answered", registry=registry
        )
        self.events = Counter(
            "sluiceway_gateway_events",
            "Traffic events by what became of them: accepted (Kafka has them), rejected (invalid), unconfirmed (503)",
            ("outcome",),
            registry=registry,
        )


class StorageMetrics:
    """What rests in the object store, as last asked for."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.objects = Gauge("sluiceway_storage_objects", "Objects in the store", ("prefix",), registry=registry)
        self.bytes = Gauge("sluiceway_storage_bytes", "Bytes of these objects", ("prefix",), registry=registry)
        self.cost = Gauge(
            "sluiceway_storage_cost_per_month", "What all these bytes cost a month, at the price set", registry=registry
        )
        self.users = Gauge(
            "sluiceway_storage_month_users", "Users of whom something was recorded this month (UTC)", registry=registry
        )
        self.users_bytes = Gauge("sluiceway_storage_month_bytes", "Bytes recorded of these users", registry=registry)
        self.users_cost = Gauge(
            "sluiceway_storage_month_cost_per_month", "What these bytes cost a month", registry=registry
        )
        self.as_of = Gauge("sluiceway_storage_as_of_seconds", "Unix time of these figures", registry=registry)


class FileMetrics:
    """Figures of files that go up and down by presigned URL."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.presigns = Counter(
            PRESIGNS,
            "Presigned URLs asked for, by outcome: signed, or failed as the store did not answer",
            ("outcome",),
            registry=registry,
        )
        self.uploads = Counter(
            DIRECT_UPLOADS,
            "Uploads straight to the store: begun, and what was found at their end: stored, missing, mismatch",
            ("outcome",),
            registry=registry,
        )

    @contextmanager
    def presigning(self) -> Iterator[None]:
        """Count what is signed inside."""
        try:
            yield
        except BaseException:
            self.presigns.labels("failed").inc()
            raise
        self.presigns.labels("signed").inc()


class AudioMetrics:
    """Figures of a gateway's audio connections."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.sockets = Gauge("sluiceway_gateway_audio_sockets", "Audio connections that are open", registry=registry)
        self.sockets_limit = Gauge(
            "sluiceway_gateway_audio_sockets_limit",
            "Audio connections that the gateway takes at once",
            registry=registry,
        )
        self.frames = Counter("sluiceway_gateway_audio_frames", "Audio chunks taken in", registry=registry)
        self.bytes = Counter("sluiceway_gateway_audio_bytes", "Bytes of these chunks", registry=registry)
        self.durable_seconds = Histogram(
            "sluiceway_gateway_audio_durable_seconds",
            "From a chunk's arrival until Kafka has it",
            buckets=(0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0),
            registry=registry,
        )
        durable_limit = Gauge(
            "sluiceway_gateway_audio_durable_limit_seconds",
            "What 99 of 100 chunks are to stay under until Kafka has them",
            registry=registry,
        )
        durable_limit.set(DURABLE_LIMIT_S)
        response_limit = Gauge(
            "sluiceway_gateway_audio_response_limit_seconds",
            "What 99 of 100 answers to requests below /api/audio are to stay under",
            registry=registry,
        )
        response_limit.set(RESPONSE_LIMIT_S)
        self.refused = Counter(
            "sluiceway_gateway_audio_refused", "Sessions that their worker has not admitted", registry=registry
        )
        self.errors = Counter(
            "sluiceway_gateway_audio_errors", "Errors told to audio clients, by code", ("code",), registry=registry
        )
