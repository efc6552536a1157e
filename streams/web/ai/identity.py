"""Which task a submission is: an id that derives from user and idempotency key, and a digest of what was asked."""

from __future__ import annotations

import hashlib
import re
import secrets

import msgspec

from topics.ai import Submit

#: What an `Idempotency-Key` is, in words for error messages.
KEY_RULE = "1 to 255 printable ASCII characters"

_KEY = re.compile(r"[\x21-\x7e](?:[\x20-\x7e]{0,253}[\x21-\x7e])?")
_ID_HEX = 40


def valid_key(text: str) -> bool:
    """Whether `text` may be an idempotency key."""
    return _KEY.fullmatch(text) is not None


def task_id_of(user: str, key: str) -> str:
    """The id of the task that `user` submits under `key`, the same at every gateway: `k-` and 40 hex digits of the SHA-256
    of `[user, key]` as JSON."""
    return "k-" + hashlib.sha256(msgspec.json.encode([user, key])).hexdigest()[:_ID_HEX]


def new_task_id() -> str:
    """An id for a task that came without a key."""
    return "t-" + secrets.token_hex(_ID_HEX // 2)


def digest_of(submit: Submit) -> str:
    """What a client asked for, in short: two submissions with the same digest are the same task. Leaves out the id, and the
    time, which differs when a request is sent again."""
    asked = msgspec.structs.replace(submit, task_id="", submitted_ms=0)
    return hashlib.sha256(msgspec.json.encode(asked)).hexdigest()
