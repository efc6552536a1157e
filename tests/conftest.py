"""Fixtures of every test folder: one embedded stack for the whole run, and the settings that lead to it."""

from __future__ import annotations

import signal
from collections.abc import Generator, Iterator
from typing import Any

# Its plugin would import it at the very end, and Python 3.11 does not survive it when an exception that nobody asked for is
# told in the middle of a compilation.
import hypothesis  # noqa: F401
import pytest
import structlog

from compose.local.stack import LocalStack
from compose.settings import Settings

#: How long a test that runs in `make chaos` only may take, seconds; all others have the time-out of pyproject.
_LONG_S = 900.0
#: Hypothesis repeats a test that failed by its time-out: it fails again after so many seconds.
_AGAIN_S = 30.0
_STARTED = pytest.StashKey[LocalStack]()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """A long test has more time before it counts as one that hangs, unless it says itself how much."""
    for item in items:
        if item.get_closest_marker("long") and not item.get_closest_marker("timeout"):
            item.add_marker(pytest.mark.timeout(_LONG_S))


@pytest.hookimpl(wrapper=True, optionalhook=True)
def pytest_timeout_set_timer(settings: Any) -> Generator[None, Any, Any]:
    """pytest-timeout's own alarm rings once."""
    done = yield
    if settings.method == "signal":
        signal.setitimer(signal.ITIMER_REAL, settings.timeout, _AGAIN_S)
    return done


@pytest.fixture(scope="session")
def stack(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Iterator[LocalStack]:
    """Kafka, ClickHouse, S3 and the stand-in model on free ports. A test may stop, kill and start each (`stack.kafka.kill()`)."""
    with LocalStack.on_free_ports(tmp_path_factory.mktemp("stack")) as started:
        request.config.stash[_STARTED] = started
        yield started


@pytest.fixture(scope="session")
def settings(stack: LocalStack) -> Settings:
    """Settings that lead to the stack."""
    return stack.settings()


@pytest.fixture(autouse=True)
def _revived(request: pytest.FixtureRequest) -> None:
    """What an earlier test left stopped runs again, so that its failure stays its own."""
    if started := request.config.stash.get(_STARTED, None):
        for server in started.servers:
            server.start()


@pytest.fixture(autouse=True)
def _own_logs() -> Iterator[None]:
    """A command that ran in this process sent its logs to a stream that ended with it, and maybe errors only."""
    yield
    structlog.reset_defaults()
