"""Who owns which partition: announcements in a compacted topic, written inside the take-over's transaction.

A gateway that needs a key's state asks the owner of its partition; a higher term is the later owner.
"""

from __future__ import annotations

import os

import msgspec

from topics.records import Emit
from topics.specs import OWNERS


class Owner(msgspec.Struct, frozen=True):
    """One announcement. `url` is the owner's status endpoint."""

    stream: str
    partition: int
    url: str
    term: int
    pid: int


def announcement(stream: str, partition: int, url: str, term: int) -> Emit:
    """The record by which the owner of a partition makes itself known."""
    owner = Owner(stream, partition, url, term, os.getpid())
    return Emit(OWNERS, f"{stream}/{partition}".encode(), msgspec.json.encode(owner))


def decode_owner(value: bytes) -> Owner:
    """Read an announcement. Raises msgspec.DecodeError for anything else."""
    return msgspec.json.decode(value, type=Owner)
