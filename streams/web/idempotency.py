"""Idempotency keys: names that clients give to what they submit, so that it is safe to submit it again."""

from __future__ import annotations

import hashlib
import re
from typing import Any

import msgspec
from aiohttp import web

from streams.web.problems import Problem

_HEADER = "Idempotency-Key"
_KEY = re.compile(r"[\x21-\x7e](?:[\x20-\x7e]{0,253}[\x21-\x7e])?")
#: Hex digits of ids.
ID_HEX = 40


def key_parameter(what: str) -> dict[str, Any]:
    """The header in the OpenAPI document; `what` is submitted."""
    return {
        "name": _HEADER,
        "in": "header",
        "description": f"the client's own name for the {what}: sent again, it is the same {what}",
        "schema": {"type": "string", "minLength": 1, "maxLength": 255},
    }


def key_of(request: web.Request) -> str | None:
    """The key that came with a request; None without one. Raises Problem."""
    key = request.headers.get(_HEADER)
    if key is not None and not valid_key(key):
        raise Problem(400, f"{_HEADER} must be 1 to 255 printable ASCII characters.", kind="bad-idempotency-key")
    return key


def valid_key(text: str) -> bool:
    """Whether `text` may be an idempotency key."""
    return _KEY.fullmatch(text) is not None


def id_of_key(user: str, key: str) -> str:
    """The id of what `user` submits under `key`, the same at every gateway: `k-` and 40 hex digits of the SHA-256 of
    `[user, key]` as JSON."""
    return "k-" + hashlib.sha256(msgspec.json.encode([user, key])).hexdigest()[:ID_HEX]
