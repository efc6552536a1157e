"""Named points at which a test makes this very process die or freeze, so that crashes are real and repeatable.

A plan reads `point=action@n`, comma-separated: at the n-th passage of `point`, `kill` (SIGKILL) or `stop` (SIGSTOP) the
process. Each entry fires once for a scratch folder, also across restarts, so that a restarted worker gets past it.
"""

from __future__ import annotations

import os
import signal
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

POINTS = (
    "fetch",
    "fold",
    "raw.before",
    "raw.after",
    "begin.before",
    "begin.after",
    "send.before",
    "send.after",
    "offsets.before",
    "offsets.after",
    "commit.before",
    "commit.after",
    "rollup.before",
    "rollup.after",
    "put.before",
    "put.after",
    "complete.before",
    "complete.after",
    "call.before",
    "call.during",
    "call.after",
    "prepare.before",
    "prepare.after",
    "convert.during",
    "convert.after",
    "verify.before",
    "verify.after",
)
ACTIONS = {"kill": signal.SIGKILL, "stop": signal.SIGSTOP}


@dataclass(frozen=True)
class _Entry:
    point: str
    action: str
    passage: int

    @property
    def name(self) -> str:
        return f"{self.point}={self.action}@{self.passage}"


class Faults:
    """The plan of this process; without one, passing a point costs a dictionary look-up."""

    def __init__(self, plan: str = "", scratch: Path | None = None) -> None:
        self._entries: dict[str, list[_Entry]] = {}
        self._passages: Counter[str] = Counter()
        self._scratch = scratch
        for text in filter(None, (part.strip() for part in plan.split(","))):
            entry = _parse(text)
            self._entries.setdefault(entry.point, []).append(entry)

    def reach(self, point: str) -> None:
        """Pass `point`; does not return when a kill is planned here."""
        entries = self._entries.get(point)
        if not entries:
            return
        self._passages[point] += 1
        for entry in entries:
            if self._passages[point] >= entry.passage and self._first_time(entry):
                os.kill(os.getpid(), ACTIONS[entry.action])

    def _first_time(self, entry: _Entry) -> bool:
        if self._scratch is None:
            return self._passages[entry.point] == entry.passage
        self._scratch.mkdir(parents=True, exist_ok=True)
        try:
            (self._scratch / entry.name).open("x").close()
        except FileExistsError:
            return False
        return True


def _parse(text: str) -> _Entry:
    point, _, rest = text.partition("=")
    action, _, passage = rest.partition("@")
    if point not in POINTS or action not in ACTIONS:
        raise ValueError(f"{text!r} is no fault: points are {', '.join(POINTS)}; actions {', '.join(ACTIONS)}")
    return _Entry(point, action, int(passage or 1))
