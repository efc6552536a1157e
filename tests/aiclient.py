"""AI tasks over HTTP, as a client of a gateway sends and reads them."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from typing import Any

from tests.audiostack import Gateway


def ask(gateway: Gateway, method: str, path: str, body: Any = None, **headers: str) -> tuple[int, dict[str, Any]]:
    """Status and JSON of an answer."""
    data = None if body is None else json.dumps(body).encode()
    asked = urllib.request.Request(gateway.url + path, data, headers, method=method)
    if data is not None:
        asked.add_header("Content-Type", "application/json")
    try:
        with urllib.request.urlopen(asked, timeout=20) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


def new_task(question: str, **more: str) -> dict[str, str]:
    """The body of a submission."""
    return {"task_type": "question", "user": "ada", "language": "English", "question": question, **more}


def state(gateway: Gateway, task_id: str) -> dict[str, Any]:
    """A task as it is shown."""
    return ask(gateway, "GET", f"/api/tasks/{task_id}")[1]
