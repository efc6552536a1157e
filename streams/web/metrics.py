"""The gateway's own figures."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram


class GatewayMetrics:
    """Counters of one gateway, in the registry that `/metrics` shows."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.requests = Counter(
            "sluiceway_gateway_requests", "HTTP requests answered", ("method", "route", "status"), registry=registry
        )
        self.request_seconds = Histogram(
            "sluiceway_gateway_request_seconds", "Time to answer an HTTP request", ("route",), registry=registry
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
