"""What is remembered to be fast is bounded in bytes: no flood of long texts fills the memory."""

from __future__ import annotations

import pytest

from streams.traffic import core
from topics import traffic
from topics.traffic import valid_ip


@pytest.mark.parametrize("text", ["x" * 46, "9" * 1_000_000, ":" * 1_000_000, "1:" * 23 + "1"])
def test_long_texts_that_are_no_address_are_not_remembered(text: str) -> None:
    before = traffic._valid_ip.cache_info().currsize
    assert not valid_ip(text)
    assert traffic._valid_ip.cache_info().currsize == before


@pytest.mark.parametrize("text", ["255.255.255.255", "0000:0000:0000:0000:0000:ffff:192.168.100.228"])
def test_the_longest_addresses_are_valid(text: str) -> None:
    assert valid_ip(text)


def test_templates_of_long_paths_are_not_remembered() -> None:
    before = core._remembered_template.cache_info().currsize
    assert core._template("/users/42" + "/p" * 4_000) == "/users/{id}" + "/p" * 4_000
    assert core._remembered_template.cache_info().currsize == before
    assert core._template("/users/42") == "/users/{id}"
