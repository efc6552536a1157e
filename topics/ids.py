"""Ids of sessions, tasks and jobs: keys of records, and parts of objects' keys and of URLs' paths."""

from __future__ import annotations

import re

#: What an id is, in words for error messages.
ID_RULE = "1 to 128 of A-Z a-z 0-9 . _ - , and not . or .."

_ID = re.compile(r"[A-Za-z0-9._-]{1,128}")


def valid_id(text: str) -> bool:
    """Whether `text` may name a session, a task or a job."""
    return _ID.fullmatch(text) is not None and text not in (".", "..")
