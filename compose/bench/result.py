"""What one system did: a JSON line, and a row of the table."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any


class BenchFailed(RuntimeError):
    """A measurement that cannot be trusted: something did not start, did not finish, or counted wrongly."""


@dataclass(frozen=True, kw_only=True)
class Result:
    """A measured system. `cpu_s` and `rss_peak_bytes` are of the measured process alone; `more` is the system's own."""

    system: str
    job: str
    events: int
    seconds: float
    cpu_s: float
    rss_peak_bytes: int
    more: dict[str, Any] = field(default_factory=dict)

    @property
    def events_per_s(self) -> float:
        """Events read a second, repeated ones included."""
        return self.events / self.seconds

    def line(self) -> str:
        """One line of JSON; `more` stands beside the common fields."""
        common = {
            "system": self.system,
            "job": self.job,
            "events": self.events,
            "events_per_s": round(self.events_per_s),
            "seconds": round(self.seconds, 3),
            "cpu_s": round(self.cpu_s, 3),
            "cpu_us_per_event": round(self.cpu_s / self.events * 1e6, 3),
            "rss_peak_bytes": self.rss_peak_bytes,
        }
        return json.dumps({**common, **self.more})


@dataclass(frozen=True)
class Quoted:
    """A figure measured elsewhere and repeated here, for systems that this bench does not run."""

    system: str
    job: str
    events_per_s: float
    source: str

    def line(self) -> str:
        """One line of JSON, marked as quoted."""
        fields = {"system": self.system, "job": self.job, "events_per_s": round(self.events_per_s)}
        return json.dumps({**fields, "quoted": True, "source": self.source})


@dataclass(frozen=True)
class Skipped:
    """A system that could not be measured, and why."""

    system: str
    job: str
    reason: str

    def line(self) -> str:
        """One line of JSON."""
        return json.dumps({"system": self.system, "job": self.job, "skipped": self.reason})


#: A line of the bench's output.
Line = Result | Quoted | Skipped
