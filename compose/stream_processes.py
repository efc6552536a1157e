"""The processes of a worker, one a stream: their names, their settings, and how soon they end.

Whoever starts them needs nothing else, and is up in a moment: the streams themselves take most of a second to import.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from compose.settings import SettingError, Settings

STREAMS = ("traffic", "audio", "ai", "files")


def stream_names(text: str) -> list[str]:
    """The streams that a comma-separated list names. Raises SettingError for one that does not exist."""
    names = [name.strip() for name in text.split(",") if name.strip()]
    unknown = [name for name in names if name not in STREAMS]
    if unknown or not names:
        raise SettingError(f"no stream is called {', '.join(unknown) or repr(text)}; there are: {', '.join(STREAMS)}")
    return names


def settings_of_each(settings: Settings, streams: Sequence[str]) -> list[tuple[str, Settings]]:
    """Each stream with the settings of its own process: of a fixed `worker_port` the first has it, the next the next."""
    first = settings.worker_port
    ports = [first + number if first else 0 for number in range(len(streams))]
    return [(name, replace(settings, worker_port=port)) for name, port in zip(streams, ports, strict=True)]


def stop_within_s(settings: Settings) -> float:
    """How long a stream's process takes to end after SIGTERM, whatever state it is in, at most."""
    return settings.flush_deadline_s + 1.6
