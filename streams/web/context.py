"""What handlers find in the application: the parts that compose made and passed in."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

from aiohttp import web
from prometheus_client import CollectorRegistry

from streams.web.ai.followers import Followers
from streams.web.ai.tasks import Tasks
from streams.web.audio.recordings import AudioParts
from streams.web.files.parts import FileParts
from streams.web.metrics import GatewayMetrics
from streams.web.openapi import Json
from streams.web.publisher import EventPublisher


@dataclass(frozen=True)
class EventLimits:
    """How much one request may bring: bytes after decompression, events, bytes of one event."""

    body_bytes_max: int = 8 << 20
    events_max: int = 50_000
    event_bytes_max: int = 1 << 20


@dataclass(frozen=True)
class Readiness:
    """Whether requests can be served in full, and each part's state in words."""

    ready: bool
    checks: dict[str, str] = field(default_factory=dict)


class ReadinessCheck(Protocol):
    """Finds out how ready the gateway and what stands behind it are."""

    async def __call__(self) -> Readiness:
        """Ask now; answers within seconds and never raises."""


class StorageUnknown(Exception):
    """What is stored cannot be found out now."""


class StorageStats(Protocol):
    """Knows what rests in the object store."""

    async def of(self, month: str | None, users: int) -> Json:
        """The document of `/api/storage/stats`, with the `users` that recorded most in a month (`2026-11`; None: this one,
        UTC). Raises StorageUnknown."""


PUBLISHER = web.AppKey("PUBLISHER", EventPublisher)
READINESS = web.AppKey("READINESS", ReadinessCheck)
REGISTRY = web.AppKey("REGISTRY", CollectorRegistry)
METRICS = web.AppKey("METRICS", GatewayMetrics)
EVENT_LIMITS = web.AppKey("EVENT_LIMITS", EventLimits)
AI = web.AppKey("AI", Tasks)
FOLLOWERS = web.AppKey("FOLLOWERS", Followers)
AUDIO = web.AppKey("AUDIO", AudioParts)
STORAGE = web.AppKey("STORAGE", StorageStats)
FILES = web.AppKey("FILES", FileParts)
DOCUMENT: web.AppKey[Json] = web.AppKey("DOCUMENT", dict)
