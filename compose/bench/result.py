"""What one measured system did: a JSON line, and a row of the table."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Result:
    """One system's figures. `cpu_s` and `rss_peak_bytes` are of the measured process alone; `more` is the system's own."""

    system: str
    job: str
    events: int
    seconds: float
    cpu_s: float
    rss_peak_bytes: int
    more: dict[str, Any] = field(default_factory=dict)

    @property
    def events_per_s(self) -> float:
        """Events read a second, duplicates included."""
        return self.events / self.seconds

    def line(self) -> str:
        """One line of JSON; `more` stands beside the common fields."""
        fields = asdict(self)
        more = fields.pop("more")
        common = {
            "events_per_s": round(self.events_per_s),
            "cpu_us_per_event": round(self.cpu_s / self.events * 1e6, 3),
        }
        fields["seconds"], fields["cpu_s"] = round(self.seconds, 3), round(self.cpu_s, 3)
        return json.dumps({**fields, **common, **more})
