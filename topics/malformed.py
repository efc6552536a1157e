"""What a strict decoder says of bytes that are no record of its topic."""

from __future__ import annotations

import msgspec


class Malformed(msgspec.Struct, frozen=True):
    """Why a record cannot be taken: `reason` is a label of few values, `error` the sentence."""

    reason: str
    error: str
