"""Which task a submission is: an id of its own if it came without a key, and a digest of what was asked."""

from __future__ import annotations

import hashlib
import secrets

import msgspec

from streams.web.idempotency import ID_HEX
from topics.ai import Submit


def new_task_id() -> str:
    """An id for a task that came without a key."""
    return "t-" + secrets.token_hex(ID_HEX // 2)


def digest_of(submit: Submit) -> str:
    """What a client asked for, in short: two submissions with the same digest are the same task. Leaves out the id, and the
    time, which differs when a request is sent again."""
    asked = msgspec.structs.replace(submit, task_id="", submitted_ms=0)
    return hashlib.sha256(msgspec.json.encode(asked)).hexdigest()
