"""How old an event may be, and what a raised limit must not reach: times whose ids are forgotten and hours closed."""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np

from streams.traffic.delta import HOUR_MS


class Lateness(msgspec.Struct, frozen=True):
    """The limit in hours of the partition's clock. Event times up to `shorter_until_ms` keep the limit `shorter_h`.

    Those are the times that were judged before the limit was raised: their ids are remembered, and their hours kept open,
    for no longer than the limit of then asked for.
    """

    hours: int
    shorter_h: int
    shorter_until_ms: int = 0

    def oldest_ms(self, clock: Any) -> Any:
        """The earliest time that is accepted at a clock (or at each of an array), milliseconds; rises with the clock."""
        kept = np.minimum(clock - self.shorter_h * HOUR_MS, self.shorter_until_ms)
        return np.maximum(clock - self.hours * HOUR_MS, kept)

    def under(self, hours: int, clock: int, newest_ms: int) -> Lateness:
        """The lateness of a fold that goes on at `clock` with the setting `hours`, no event so far being past `newest_ms`."""
        if hours <= self.hours:
            return Lateness(hours, self.shorter_h, self.shorter_until_ms)
        settled = self.oldest_ms(clock) <= clock - self.hours * HOUR_MS
        return Lateness(hours, self.hours if settled else min(self.shorter_h, self.hours), newest_ms)
