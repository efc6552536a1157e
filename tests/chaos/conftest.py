"""The fixture of every chaos test."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from compose.local.stack import LocalStack
from tests.chaos.driver import Run, chaos_run


@pytest.fixture(params=[1, pytest.param(5, marks=pytest.mark.long)], ids=["short", "full"])
def scale(request: pytest.FixtureRequest) -> int:
    """How many times as many events as in the short form: the full one has 200,000 and more, in the same time."""
    found: int = request.param
    return found


@pytest.fixture
def new_run(stack: LocalStack, tmp_path: Path) -> Iterator[Callable[..., Run]]:
    """Makes the test's run; keyword arguments are settings of all its workers."""
    with ExitStack() as ends:
        yield lambda **settings: ends.enter_context(chaos_run(stack, tmp_path, **settings))
