"""How the settings reach Kafka: the one place that turns them into connection arguments."""

from __future__ import annotations

from compose.settings import Settings
from streams.runtime.access import KafkaAccess
from streams.web.publisher import KafkaPublisher, PublishLimits
from topics.specs import AI_TASKS, AUDIO_CHUNKS, FILES_JOBS, TRAFFIC_EVENTS


def kafka_access(settings: Settings) -> KafkaAccess:
    """How to reach Kafka."""
    return KafkaAccess(
        settings.kafka_bootstrap,
        settings.kafka_security_protocol,
        settings.kafka_sasl_mechanism,
        settings.kafka_username,
        settings.kafka_password,
    )


def traffic_publisher(settings: Settings, sender: str, limits: PublishLimits | None = None) -> KafkaPublisher:
    """A publisher to `traffic.events.v1`; `sender` names it in the `producer` header. Start and close are the caller's."""
    return KafkaPublisher(kafka_access(settings).aiokafka(), TRAFFIC_EVENTS, sender, limits)


def audio_publisher(settings: Settings, sender: str) -> KafkaPublisher:
    """A publisher to `audio.chunks.v1`, shared by the connections of a gateway. Start and close are the caller's."""
    # Audio does not get smaller by lz4, and its chunks come one by one from many sessions.
    limits = PublishLimits(linger_s=0.02, compression=None)
    return KafkaPublisher(kafka_access(settings).aiokafka(), AUDIO_CHUNKS, sender, limits)


def ai_publisher(settings: Settings, sender: str) -> KafkaPublisher:
    """A publisher to `ai.tasks.v1`. Start and close are the caller's."""
    return KafkaPublisher(kafka_access(settings).aiokafka(), AI_TASKS, sender)


def files_publisher(settings: Settings, sender: str) -> KafkaPublisher:
    """A publisher to `files.jobs.v1`. Start and close are the caller's."""
    return KafkaPublisher(kafka_access(settings).aiokafka(), FILES_JOBS, sender)
