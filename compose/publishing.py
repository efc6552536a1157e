"""Makes the publisher of traffic events from settings, for the gateway and for commands that produce."""

from __future__ import annotations

import ssl
from typing import Any

from compose.settings import Settings
from streams.web.publisher import KafkaPublisher, PublishLimits
from topics.specs import TRAFFIC_EVENTS


def kafka_connection(settings: Settings) -> dict[str, Any]:
    """The settings as aiokafka's connection arguments."""
    connection: dict[str, Any] = {
        "bootstrap_servers": [server.strip() for server in settings.kafka_bootstrap.split(",") if server.strip()],
        "security_protocol": settings.kafka_security_protocol,
    }
    if settings.kafka_security_protocol.startswith("SASL"):
        connection |= {
            "sasl_mechanism": settings.kafka_sasl_mechanism,
            "sasl_plain_username": settings.kafka_username,
            "sasl_plain_password": settings.kafka_password,
        }
    if settings.kafka_security_protocol.endswith("SSL"):
        connection["ssl_context"] = ssl.create_default_context()
    return connection


def traffic_publisher(settings: Settings, sender: str, limits: PublishLimits | None = None) -> KafkaPublisher:
    """A publisher to `traffic.events.v1`; `sender` names it in the `producer` header. Start and close are the caller's."""
    return KafkaPublisher(kafka_connection(settings), TRAFFIC_EVENTS, sender, limits)
