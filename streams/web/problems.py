"""Every error of the gateway as a problem document (RFC 9457): `type, title, status, detail`."""

from __future__ import annotations

from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

import orjson
import structlog
from aiohttp import hdrs, web
from aiohttp.typedefs import Handler

CONTENT_TYPE = "application/problem+json"
SCHEMA: dict[str, Any] = {
    "type": "object",
    "required": ["type", "title", "status", "detail"],
    "properties": {
        "type": {"type": "string", "description": "a URI of the kind of problem, or about:blank"},
        "title": {"type": "string"},
        "status": {"type": "integer", "minimum": 400, "maximum": 599},
        "detail": {"type": "string", "description": "what happened, to what, and what to do next"},
    },
}
_KEPT_HEADERS = (hdrs.ALLOW, hdrs.WWW_AUTHENTICATE, hdrs.RETRY_AFTER, hdrs.ACCEPT_ENCODING)

log = structlog.get_logger(__name__)


class Problem(Exception):
    """An answer that is an error. `kind` names it in `type` (`urn:sluiceway:problem:<kind>`) where a client may branch."""

    def __init__(
        self, status: int, detail: str, *, kind: str | None = None, headers: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(detail)
        self.status = status
        self.detail = detail
        self.kind = kind
        self.headers = dict(headers or {})

    def response(self) -> web.Response:
        """The problem document."""
        document = {
            "type": f"urn:sluiceway:problem:{self.kind}" if self.kind else "about:blank",
            "title": HTTPStatus(self.status).phrase,
            "status": self.status,
            "detail": self.detail,
        }
        return web.Response(
            status=self.status, body=orjson.dumps(document), content_type=CONTENT_TYPE, headers=self.headers
        )


@web.middleware
async def problems(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Turn problems, aiohttp's own errors and bugs into problem documents. A bug's own words stay in the log."""
    try:
        return await handler(request)
    except Problem as problem:
        return problem.response()
    except web.HTTPException as error:
        if error.status < 400:
            raise
        return _of_http_error(request, error).response()
    except Exception:
        log.exception("request_failed", method=request.method, path=request.path)
        return Problem(500, "The gateway failed on this request; its log says why.").response()


def _of_http_error(request: web.Request, error: web.HTTPException) -> Problem:
    headers: dict[str, str] = {name: error.headers[name] for name in _KEPT_HEADERS if name in error.headers}
    match error:
        case web.HTTPNotFound():
            detail = f"There is nothing at {request.path}; /openapi.json lists what there is."
        case web.HTTPMethodNotAllowed():
            detail = f"{request.path} does not take {request.method}, only {headers.get(hdrs.ALLOW, 'other methods')}."
        case web.HTTPRequestEntityTooLarge():
            detail = "The body, uncompressed, is over the gateway's limit; send it in smaller batches."
        case _:
            detail = error.text or error.reason
    return Problem(error.status, detail, headers=headers)
