"""Requests to addresses that a client named: to public ones only, and those that a setting allows.

Where a request goes is judged at the moment of connecting, by the very address: whatever a name has resolved to before, and
however an address is written, changes nothing.
"""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Sequence
from typing import Any

import aiohttp
from aiohttp.abc import AbstractResolver

from compose.settings import PREFIX, SettingError
from streams.runtime.addresses import Network, may_reach, networks


class NotPublic(OSError):
    """An address that may not be reached."""

    def __str__(self) -> str:
        # The same for every address of a host: only then it reaches us when all of them were refused.
        return "its host has no address that may be reached"


def guarded(allowed: Sequence[Network], resolver: AbstractResolver | None = None) -> aiohttp.TCPConnector:
    """A connector whose connections fail with NotPublic, as the `os_error` of a ClientConnectorError."""

    def make_socket(info: tuple[Any, ...]) -> socket.socket:
        """A socket for one address; what it is connected to is that address, and not a name."""
        family, kind, protocol, _, address = info
        host = str(address[0]).partition("%")[0]
        if not may_reach(ipaddress.ip_address(host), allowed):
            raise NotPublic
        return socket.socket(family=family, type=kind, proto=protocol)

    return aiohttp.TCPConnector(resolver=resolver, socket_factory=make_socket)


def networks_of(name: str, text: str) -> tuple[Network, ...]:
    """The networks of a setting, which may be reached though they are not public. Raises SettingError."""
    try:
        return networks(text)
    except ValueError as error:
        raise SettingError(f"{PREFIX}{name}: {error}") from None
