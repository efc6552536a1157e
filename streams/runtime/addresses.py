"""Which addresses of a client's choice may be reached: public ones, and those that a setting allows."""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from collections.abc import Sequence
from urllib.parse import urlsplit

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network

_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")
#: What is given out of IPv6. `is_global` takes what is not, too: site-local addresses, and translations of IPv4 ones.
_GIVEN_OUT = ipaddress.IPv6Network("2000::/3")
_RESOLVE_S = 3.0


def networks(text: str) -> tuple[Network, ...]:
    """Networks of a comma-separated list, as `127.0.0.1` or `10.1.0.0/16`. Raises ValueError."""
    return tuple(ipaddress.ip_network(part.strip(), strict=False) for part in text.split(",") if part.strip())


def may_reach(address: Address, allowed: Sequence[Network]) -> bool:
    """Whether a request may go there. An IPv6 address that stands for an IPv4 one counts as that one."""
    if any(address in network for network in allowed):
        return True
    inner = _inner(address)
    if inner is not None:
        return may_reach(inner, allowed)
    if isinstance(address, ipaddress.IPv6Address) and address not in _GIVEN_OUT:
        return False
    return address.is_global and not address.is_multicast


def _inner(address: Address) -> Address | None:
    if isinstance(address, ipaddress.IPv4Address):
        return None
    if address in _NAT64:
        return ipaddress.IPv4Address(int(address) & 0xFFFF_FFFF)
    return address.ipv4_mapped or address.sixtofour or (address.teredo[1] if address.teredo else None)


def host_of(url: str) -> tuple[str, int] | str:
    """Host and port of a URL, or what is wrong with it."""
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        return f"it is no URL ({error})"
    if parts.scheme not in ("http", "https") or not parts.hostname:
        return "it is no http or https URL with a host"
    if parts.username is not None or parts.password is not None:
        return "it carries a user or password"
    return parts.hostname, port or (443 if parts.scheme == "https" else 80)


async def url_problem(url: str, allowed: Sequence[Network]) -> str | None:
    """What is wrong with a URL to be asked, or None: its host must have public addresses only.

    That holds at the moment of asking: whoever sends must look again at what it connects to.
    """
    found = host_of(url)
    if isinstance(found, str):
        return found
    host, port = found
    try:
        async with asyncio.timeout(_RESOLVE_S):
            told = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError, TimeoutError):
        return f"its host {host[:100]} has no address"
    for address in {str(item[4][0]).partition("%")[0] for item in told}:
        if not may_reach(ipaddress.ip_address(address), allowed):
            return f"its host has the address {address}, which is not public"
    return None
