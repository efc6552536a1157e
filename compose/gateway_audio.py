"""What a gateway needs for audio, made from the settings."""

from __future__ import annotations

from prometheus_client import CollectorRegistry

from compose.audiostore import BucketRecordings
from compose.clients import bucket, presigner
from compose.kafka import audio_publisher, kafka_access
from compose.settings import Settings
from streams.runtime.owners import OwnersTail
from streams.web.audio.hub import Hub
from streams.web.audio.owner import AudioOwners
from streams.web.audio.parts import Seats, SocketLimits, SocketParts
from streams.web.audio.recordings import AudioParts
from streams.web.metrics import AudioMetrics
from streams.web.tail import TopicTail
from topics.specs import AUDIO_SEGMENTS


class GatewayAudio:
    """The parts, and their start and end. Made inside a running event loop."""

    def __init__(self, settings: Settings, announced: OwnersTail, registry: CollectorRegistry) -> None:
        hub = Hub()
        self._publisher = audio_publisher(settings, "gateway")
        self._tail = TopicTail(kafka_access(settings).aiokafka(), AUDIO_SEGMENTS, hub.note)
        self._bucket = bucket(settings)

        def url_of(partition: int) -> str | None:
            owner = announced.owners.get(("audio", partition))
            return owner.url if owner is not None else None

        self._owners = AudioOwners(url_of, self._publisher.partitions)
        limits = SocketLimits(
            ping_s=settings.audio_ping_s,
            idle_s=settings.audio_connection_idle_s,
            resume_s=settings.audio_resume_s,
            write_s=settings.audio_write_s,
            unconfirmed_bytes=settings.audio_unconfirmed_kb << 10,
        )
        metrics, seats = AudioMetrics(registry), Seats(settings.audio_connections)
        metrics.sockets_limit.set(seats.capacity)
        self.parts = AudioParts(
            SocketParts(self._publisher, self._owners, hub, self._tail.following, metrics, limits, seats),
            self._owners,
            BucketRecordings(self._bucket, presigner(settings, self._bucket)),
            # With a key, no page of a browser gets here by itself.
            check_origin=not settings.api_key,
            link_s=settings.audio_link_h * 3600,
        )

    async def start(self) -> None:
        """Begin to connect; returns at once."""
        await self._publisher.start()
        await self._tail.start()

    async def close(self) -> None:
        """Disconnect, once no connection is left."""
        await self._tail.stop()
        await self._owners.close()
        await self._publisher.close()
        await self._bucket.close()
