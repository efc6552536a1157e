"""Rules that meet a crash half-way: templates switched on at a restart, and ids that expire as the broker's hours pass."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.chaos import scenarios
from tests.chaos.driver import ALONE_S, Run

pytestmark = pytest.mark.stack


def test_templates_switched_on_in_the_middle(new_run: Callable[..., Run], scale: int) -> None:
    scenarios.switch_templates_on(new_run(), scale)


def test_ids_are_remembered_for_as_long_as_they_can_be_accepted(new_run: Callable[..., Run]) -> None:
    faults = "raw.after=kill@2,commit.before=kill@6,commit.after=kill@6"
    scenarios.let_hours_pass(new_run(session_timeout_s=ALONE_S), faults)
