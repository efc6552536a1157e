"""The ways a sink fails: it cannot now, it never will, or it holds something else than was written."""

from __future__ import annotations


class SinkUnavailable(Exception):
    """The store cannot be reached or cannot take writes now; the same write may succeed later."""


class SinkRefused(Exception):
    """The store will never take this write as it is; trying again changes nothing."""


class SinkMismatch(Exception):
    """The store answers with other bytes than were written. What they were made of must not be removed; write again."""
