"""`/file-flow-demo`: a page that uploads a file, watches its conversion and downloads the result; it loads from no other host."""

from __future__ import annotations

from pathlib import Path

from aiohttp import hdrs, web

from streams.web.openapi import Endpoints

_FOLDER = Path(__file__).parent / "page"
_TYPES = {"index.html": "text/html", "page.css": "text/css", "page.js": "text/javascript"}
# The page talks to the gateway, and to the store wherever it is; it runs its own script only.
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src data:; connect-src *; frame-ancestors 'none'"
)

endpoints = Endpoints("files")
_HTML = {"description": "The page", "content": {"text/html": {"schema": {"type": "string"}}}}


@endpoints.add("GET", "/file-flow-demo", summary="The file-flow page", responses={200: _HTML}, public=True)
async def get_file_flow_demo(request: web.Request) -> web.Response:
    """Holds nothing secret, and asks for the API key itself where one is wanted."""
    return _file("index.html")


@endpoints.add(
    "GET",
    "/file-flow-demo/{name}",
    route="/file-flow-demo/{name:page\\.(?:css|js)}",
    summary="The page's style and script",
    parameters=[{"name": "name", "in": "path", "required": True, "schema": {"enum": ["page.css", "page.js"]}}],
    responses={200: {"description": "The file"}},
    public=True,
)
async def get_file_flow_demo_part(request: web.Request) -> web.Response:
    """What the page loads."""
    return _file(request.match_info["name"])


def _file(name: str) -> web.Response:
    headers = {
        hdrs.CACHE_CONTROL: "no-cache",
        "Content-Security-Policy": _POLICY,
        "X-Content-Type-Options": "nosniff",
        "Referrer-Policy": "no-referrer",
    }
    body = (_FOLDER / name).read_bytes()
    return web.Response(body=body, content_type=_TYPES[name], charset="utf-8", headers=headers)
