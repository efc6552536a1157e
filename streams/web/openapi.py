"""Endpoints that carry their own OpenAPI operation, and the document made of them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any

from aiohttp import web

from streams.web import problems

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
Json = dict[str, Any]


@dataclass(frozen=True)
class Endpoint:
    """A route, its handler and its operation object. A `public` one needs no API key; `route` is what is matched, if that
    is wider than what is documented."""

    method: str
    path: str
    handler: Handler
    operation: Json
    public: bool
    route: str = ""


@dataclass(frozen=True)
class Endpoints:
    """The endpoints of one module, in the order they are written; `schemas` are what their operations refer to."""

    tag: str
    listed: list[Endpoint] = field(default_factory=list)
    schemas: Json = field(default_factory=dict)

    def add(
        self,
        method: str,
        path: str,
        *,
        summary: str,
        responses: dict[int, Json],
        errors: Iterable[int] = (),
        body: Json | None = None,
        parameters: Iterable[Json] = (),
        public: bool = False,
        route: str = "",
    ) -> Callable[[Handler], Handler]:
        """Declare the decorated handler: its docstring is the description, `errors` are answered by problem documents."""

        def declare(handler: Handler) -> Handler:
            operation: Json = {
                "operationId": handler.__name__,
                "tags": [self.tag],
                "summary": summary,
                "description": " ".join((handler.__doc__ or "").split()),
                "responses": {str(status): response for status, response in responses.items()},
            }
            refused = [*errors] if public else [*errors, 401]
            operation["responses"] |= {str(status): _problem(status) for status in sorted(refused)}
            if body is not None:
                operation["requestBody"] = body
            if params := list(parameters):
                operation["parameters"] = params
            if public:
                operation["security"] = []
            self.listed.append(Endpoint(method, path, handler, operation, public, route))
            return handler

        return declare


def response(description: str, schema: Json, content_type: str = "application/json") -> Json:
    """A response object with one kind of content."""
    return {"description": description, "content": {content_type: {"schema": schema}}}


def document(modules: Iterable[Endpoints], version: str, *, with_key: bool) -> Json:
    """The OpenAPI 3.1 document of all endpoints."""
    paths: Json = {}
    schemas: Json = {"Problem": problems.SCHEMA}
    for module in modules:
        schemas |= module.schemas
        for endpoint in module.listed:
            paths.setdefault(endpoint.path, {})[endpoint.method.lower()] = endpoint.operation
    components: Json = {"schemas": schemas}
    if with_key:
        components["securitySchemes"] = {"apiKey": {"type": "http", "scheme": "bearer"}}
    return {
        "openapi": "3.1.0",
        "info": {"title": "Sluiceway", "version": version, "description": "The gateway of an event-sourced processor."},
        "security": [{"apiKey": []}] if with_key else [],
        "paths": paths,
        "components": components,
    }


def _problem(status: int) -> Json:
    schema = {"$ref": "#/components/schemas/Problem"}
    return response(HTTPStatus(status).phrase, schema, problems.CONTENT_TYPE)
