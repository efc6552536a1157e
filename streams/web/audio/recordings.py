"""What the audio endpoints need: connections, owners, and the objects that sessions leave."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from streams.web.audio.owner import AudioOwners
from streams.web.audio.parts import SocketParts


class RecordingStore(Protocol):
    """The object store, as far as recordings are read from it. Its calls wait for as long as it is away."""

    async def manifest(self, session_id: str) -> bytes | None:
        """The session's manifest; None if it has none."""

    def link(self, key: str, expires_s: int, file_name: str) -> str:
        """A URL that gives the object to whoever has it."""


@dataclass(frozen=True)
class AudioParts:
    """The parts, made by compose. With `check_origin`, a browser's page may connect only from the gateway's own address."""

    sockets: SocketParts
    owners: AudioOwners
    store: RecordingStore
    check_origin: bool = True
    link_s: int = 24 * 3600
    store_timeout_s: float = 5.0
