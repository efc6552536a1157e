"""The arithmetic of objects made of parts."""

from __future__ import annotations

import hashlib

import pytest

from sinks.objects import PART_BYTES_MAX, PART_BYTES_MIN, PARTS_MAX, Part, multipart_etag, part_bytes_for
from sinks.objects.parts import content_md5, fault_of_part, fault_of_parts, md5_hex

MIB = 1 << 20


def _parts(*sizes: int) -> dict[int, Part]:
    return {number: Part(number, size, "") for number, size in enumerate(sizes, 1)}


def test_the_etag_is_the_one_of_r2s_own_example() -> None:
    """https://developers.cloudflare.com/r2/objects/multipart-objects/"""
    md5s = ["bce6bf66aeb76c7040fdd5f4eccb78e6", "8165449fc15bbf43d3b674595cbcc406"]
    assert multipart_etag(md5s) == "f77dc0eecdebcd774a2a22cb393ad2ff-2"


def test_a_content_md5_is_the_sum_in_base64() -> None:
    assert md5_hex(b"data") == hashlib.md5(b"data").hexdigest()
    assert content_md5(md5_hex(b"data")) == "jXd/OF09/siBXSD3SWAm3A=="


@pytest.mark.parametrize(
    ("size", "least", "part_bytes"),
    [
        (0, 0, PART_BYTES_MIN),
        (100 * MIB, 0, PART_BYTES_MIN),
        (100 * MIB, 8 * MIB, 8 * MIB),
        (PARTS_MAX * PART_BYTES_MIN, 0, PART_BYTES_MIN),
        (PARTS_MAX * PART_BYTES_MIN + 1, 0, 6 * MIB),
        (PARTS_MAX * 64 * MIB - 1, 8 * MIB, 64 * MIB),
        (0, 8 * MIB + 1, 9 * MIB),
    ],
)
def test_a_part_size_holds_the_whole_in_ten_thousand(size: int, least: int, part_bytes: int) -> None:
    assert part_bytes_for(size, least) == part_bytes
    assert PART_BYTES_MIN <= part_bytes <= PART_BYTES_MAX and part_bytes * PARTS_MAX >= size


@pytest.mark.parametrize(("number", "size"), [(1, 0), (1, 1), (1, 10), (PARTS_MAX, 1), (2, 10)])
def test_parts_up_to_the_size_and_the_number_are_parts(number: int, size: int) -> None:
    assert fault_of_part(number, size, 10) is None


@pytest.mark.parametrize(
    ("number", "size", "fault"),
    [(0, 1, "part 0"), (PARTS_MAX + 1, 1, "part 10,001"), (1, 11, "11 bytes, more than the 10"), (2, 0, "is empty")],
)
def test_others_are_not(number: int, size: int, fault: str) -> None:
    assert fault in (fault_of_part(number, size, 10) or "")


@pytest.mark.parametrize("sizes", [(1,), (10,), (10, 10), (10, 10, 1)])
def test_equal_parts_and_a_rest_make_an_object(sizes: tuple[int, ...]) -> None:
    assert fault_of_parts(_parts(*sizes), 10) is None


def test_unequal_or_missing_parts_do_not() -> None:
    assert fault_of_parts({}, 10) == "it has no part"
    assert fault_of_parts(_parts(10, 9, 10), 10) == "part 2 of 3 has 9 bytes and not 10"
    assert fault_of_parts(_parts(9, 1), 10) == "part 1 of 2 has 9 bytes and not 10"
    parts = _parts(10, 10, 10)
    del parts[1], parts[2]
    assert fault_of_parts(parts, 10) == "of 3 parts 1, 2 are missing"
