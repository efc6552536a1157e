"""What can go wrong with the local stack; every message says what happened, to what, and what to do next."""

from __future__ import annotations

import errno


class LocalStackError(RuntimeError):
    """The local stack cannot start or go on."""


class PortTaken(LocalStackError):
    """Another process listens on a port that a part of the stack needs."""


class FolderHeld(LocalStackError):
    """Another process runs a stack on the same data folder."""


class NoNetwork(LocalStackError):
    """Something has to be downloaded once and cannot be."""


class DiskFull(LocalStackError):
    """The data folder or the cache has no room left."""


class StartFailed(LocalStackError):
    """A part of the stack ended or did not answer in time; the message carries the tail of its log."""


def says_disk_full(text: str) -> bool:
    """Whether an error text of any part of the stack means that the disk is full."""
    return "No space left on device" in text or f"Errno {errno.ENOSPC}" in text
