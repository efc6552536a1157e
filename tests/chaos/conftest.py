"""The fixture of every chaos test."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from compose.local.stack import LocalStack
from tests.chaos.driver import Run, chaos_run


@pytest.fixture
def new_run(stack: LocalStack, tmp_path: Path) -> Iterator[Callable[..., Run]]:
    """Makes the test's run; keyword arguments are settings of all its workers."""
    with ExitStack() as ends:
        yield lambda **settings: ends.enter_context(chaos_run(stack, tmp_path, **settings))
