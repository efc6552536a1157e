"""The ids of events of output topics: by them a reader orders and resumes."""

from __future__ import annotations

import re
from typing import NamedTuple

_EVENT_ID = re.compile(r"(\d{1,5})-(\d{1,15})-(\d{1,6})")


class EventId(NamedTuple):
    """An event's place: ids of one key grow with time, and the same event has the same id for ever.

    `offset` is that of the source record that brought it about, `epoch` that of the source topic (it rises when the topic
    is made anew), `number` counts the events of one record. As text it is an SSE id.
    """

    epoch: int
    offset: int
    number: int

    def __str__(self) -> str:
        return f"{self.epoch}-{self.offset}-{self.number}"


def parse_event_id(text: str) -> EventId | None:
    """The id that `str` made; None for any other text."""
    found = _EVENT_ID.fullmatch(text)
    return EventId(*map(int, found.groups())) if found and text.isascii() else None
