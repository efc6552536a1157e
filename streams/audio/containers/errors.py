"""The one error of this package."""

from __future__ import annotations


class BadAudio(ValueError):
    """Bytes that are not what their format says; the message says what was met, and where."""
