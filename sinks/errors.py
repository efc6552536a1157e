"""The two ways a sink fails: it cannot now, or it never will."""

from __future__ import annotations


class SinkUnavailable(Exception):
    """The store cannot be reached or cannot take writes now; the same write may succeed later."""


class SinkRefused(Exception):
    """The store will never take this write as it is; trying again changes nothing."""
