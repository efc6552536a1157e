"""Answers as endpoints give them."""

from __future__ import annotations

from collections.abc import Mapping

import orjson
from aiohttp import hdrs, web


def json_answer(value: object, status: int = 200, headers: Mapping[str, str] | None = None) -> web.Response:
    """JSON that nobody keeps."""
    kept = {hdrs.CACHE_CONTROL: "no-store", **(headers or {})}
    return web.Response(status=status, body=orjson.dumps(value), content_type="application/json", headers=kept)
