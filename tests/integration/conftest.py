"""The S3 servers as fixtures: `store` is each of them in turn, `bucket` the sink on it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from compose.settings import load
from sinks.objects import Bucket
from tests.objectstores import GAPS, Impatient, ObjectStore, embedded, strict, versitygw
from tests.versitygw import CannotBuild, versitygw_binary


@pytest.fixture(scope="session")
def versity(request: pytest.FixtureRequest) -> Path:
    """The binary of versitygw."""
    terminal = request.config.pluginmanager.get_plugin("terminalreporter")
    try:
        return versitygw_binary(load().cache_dir, lambda line: terminal and terminal.write_line(f"\n{line}"))
    except CannotBuild as reason:
        pytest.skip(f"THE OBJECT SINK IS NOT HELD TO VERSITYGW: {reason}")


@pytest.fixture(scope="module", params=list(GAPS))
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ObjectStore]:
    folder = tmp_path_factory.mktemp(request.param)
    makers: dict[str, Callable[[], Any]] = {
        "embedded": lambda: embedded(folder),
        "strict": lambda: strict(folder),
        "versitygw": lambda: versitygw(folder, request.getfixturevalue("versity")),
    }
    with makers[request.param]() as store:
        yield store


@pytest.fixture
def store(server: ObjectStore, request: pytest.FixtureRequest) -> ObjectStore:
    """The server with nothing injected; a test marked `needs` of what it lacks must fail."""
    for needed in request.node.iter_markers("needs"):
        if reason := GAPS[server.name].get(needed.args[0]):
            request.applymarker(pytest.mark.xfail(reason=f"{server.name}: {reason}", strict=True))
    server.server.start()
    server.proxy.reset()
    return server


@pytest.fixture
async def bucket(store: ObjectStore) -> AsyncIterator[Bucket]:
    made = Bucket(store.address, Impatient(0.02, 0.2))
    yield made
    await made.close()
