"""Waiting between attempts: exponential, capped, with full jitter so that workers do not come back in step."""

from __future__ import annotations

import random
from dataclasses import dataclass


@dataclass(frozen=True)
class Backoff:
    """Delays in seconds: attempt n (from 0) waits a uniform share of `base_s * 2**n`, at most `cap_s`."""

    base_s: float = 0.1
    cap_s: float = 5.0

    def delay_s(self, attempt: int) -> float:
        """The wait after failed attempt number `attempt`."""
        return random.uniform(0, min(self.cap_s, self.base_s * 2.0 ** min(attempt, 32)))
