"""The gateway and the workers as child processes: started with one set of settings, watched, drained together."""

from __future__ import annotations

import dataclasses
import signal
import sys
import urllib.error
import urllib.request
from collections.abc import Sequence

from compose.local.process import check_port, dying_with_parent, free_port
from compose.settings import Settings
from compose.stream_processes import settings_of_each, stop_within_s
from compose.supervisor import Child, Supervisor


class Processes:
    """One gateway, and one worker for each of `streams`, from one thread: `start`, `look` again and again, `stop`."""

    def __init__(self, settings: Settings, streams: Sequence[str]) -> None:
        if settings.gateway_port == 0:
            settings = dataclasses.replace(settings, gateway_port=free_port())
        self.settings = settings
        host = "127.0.0.1" if settings.gateway_host in ("0.0.0.0", "::") else settings.gateway_host
        self.gateway_url = f"http://{f'[{host}]' if ':' in host else host}:{settings.gateway_port}"
        self.children = [_child("gateway", ["gateway"], settings)]
        # Ready is who can reach the topic of events, which no worker makes where traffic is not folded.
        path = "/api/ready" if "traffic" in streams else "/api/health"
        self._answers = {"gateway": f"{self.gateway_url}{path}"}
        for stream, own in settings_of_each(settings, streams):
            # A port that is known here, so that its readiness can be asked for.
            own = dataclasses.replace(own, worker_port=own.worker_port or free_port())
            self.children.append(_child(f"worker {stream}", ["worker", "--streams", stream], own))
            self._answers[f"worker {stream}"] = f"http://{own.worker_host}:{own.worker_port}/ready"

    def start(self) -> None:
        """Start them all. Raises PortTaken for the gateway's port."""
        host, port = self.settings.gateway_host, self.settings.gateway_port
        check_port(port, "The gateway", "SLUICEWAY_GATEWAY_PORT", host)
        self.look()

    def look(self) -> None:
        """Start again what died and whose pause is over."""
        for child in self.children:
            child.look()

    def waiting_for(self) -> list[str]:
        """Names of those that are not ready: they do not answer, or answer anything but 200."""
        return [name for name, url in self._answers.items() if not _is_ready(url)]

    def stop(self) -> None:
        """SIGTERM to all, which drains and commits; SIGKILL to what does not end in the time that a worker takes at most."""
        Supervisor(self.children, stop_within_s(self.settings) + 1.0).stop()


def _child(name: str, arguments: list[str], settings: Settings) -> Child:
    # Killed, not drained: the stack of a parent that was killed is gone in the same moment.
    command = dying_with_parent([sys.executable, "-m", "compose.cli", *arguments], signal.SIGKILL)
    return Child(name, command, settings.environ())


def _is_ready(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=2) as answer:
            return bool(answer.status == 200)
    except (OSError, urllib.error.URLError):
        return False
