"""What an audio connection is made with: its bounds, where chunks go, who knows sessions, and the wire to the client."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from streams.web.audio.hub import Hub
from streams.web.audio.owner import SessionOwner
from streams.web.metrics import AudioMetrics
from streams.web.publisher import HeadedRecord, Place, Told


class AudioLog(Protocol):
    """Where chunks go."""

    async def append(self, records: Sequence[HeadedRecord]) -> Place:
        """Return once Kafka holds every record, in their order: where the first lies. Raises PublishUnavailable."""

    def post(self, record: HeadedRecord, told: Told) -> None:
        """`append` of one record; `told` is called once, with where it lies or with PublishUnavailable."""

    @property
    def crowded(self) -> bool:
        """Whether so much waits for Kafka that no more is to be read from anybody."""

    def when_room(self, call: Callable[[], None]) -> None:
        """Call once when that is over."""


class AnyWire(Protocol):
    """The connection; see `Wire`."""

    pinged_s: float | None
    too_large: bool

    async def receive(self) -> bytes | str | None:
        """See `Wire`."""

    async def send(self, text: str) -> None:
        """See `Wire`."""

    def offer(self, text: str) -> bool:
        """See `Wire`."""

    async def ping(self) -> None:
        """See `Wire`."""

    async def close(self, code: int, reason: str) -> None:
        """See `Wire`."""

    def abort(self) -> None:
        """See `Wire`."""


@dataclass(frozen=True)
class SocketLimits:
    """Bounds of one connection: in seconds, but `unconfirmed_bytes` (read, and not yet confirmed by Kafka) and
    `lost_after` (see `Durable`)."""

    ping_s: float = 15.0
    idle_s: float = 300.0
    resume_s: float = 30.0
    write_s: float = 10.0
    durable_every_s: float = 0.02
    unconfirmed_bytes: int = 1 << 20
    lost_after: int = 64


@dataclass
class Seats:
    """How many connections a gateway takes at once."""

    capacity: int = 2_000
    taken: int = 0

    def take(self) -> bool:
        """Whether there was one left; it is given back by `leave`."""
        if self.taken >= self.capacity:
            return False
        self.taken += 1
        return True

    def leave(self) -> None:
        """The connection is over."""
        self.taken -= 1


@dataclass(frozen=True)
class SocketParts:
    """What all connections of a gateway share. `following` is set while the events of sessions are followed."""

    log: AudioLog
    owner: SessionOwner
    hub: Hub
    following: asyncio.Event
    metrics: AudioMetrics
    limits: SocketLimits = SocketLimits()
    seats: Seats = field(default_factory=Seats)
