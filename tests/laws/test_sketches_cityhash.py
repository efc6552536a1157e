"""The column hash equals CityHash64 of ClickHouse, string by string, for any bytes and any cut of the column."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pytest
from clickhouse_cityhash.cityhash import CityHash64
from hypothesis import given, settings
from hypothesis import strategies as st

from streams.sketches import cityhash
from streams.sketches.cityhash import cityhash64, uniq_hash

U64 = npt.NDArray[np.uint64]


def _hashes(strings: Sequence[bytes], before: bytes = b"", after: bytes = b"") -> U64:
    data = np.frombuffer(before + b"".join(strings) + after, np.uint8)
    offsets = len(before) + np.cumsum([0, *map(len, strings)])
    return cityhash64(data, offsets)


@given(st.lists(st.binary(max_size=300), max_size=40), st.binary(max_size=9), st.binary(max_size=9))
@settings(deadline=None)
def test_hashes_equal_the_reference_whatever_lies_around_the_strings(
    strings: list[bytes], before: bytes, after: bytes
) -> None:
    assert _hashes(strings, before, after).tolist() == [CityHash64(string) for string in strings]


@pytest.mark.parametrize("fill", [b"\x00", b"\xff", b"a", b"\x80"])
def test_every_length_up_to_300_and_some_long_ones(fill: bytes) -> None:
    strings = [fill * length for length in [*range(301), 1023, 1024, 1025, 70_000]]
    assert _hashes(strings).tolist() == [CityHash64(string) for string in strings]


def test_a_column_longer_than_a_block_of_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    strings = [str(i * i).encode() * (i % 9) for i in range(1000)]
    whole = _hashes(strings)
    monkeypatch.setattr(cityhash, "BLOCK_ROWS", 7)
    assert _hashes(strings).tolist() == whole.tolist() == [CityHash64(string) for string in strings]


@given(st.lists(st.ip_addresses(v=4).map(str), min_size=1))
@settings(deadline=None)
def test_offsets_of_either_width_hash_alike(addresses: list[str]) -> None:
    data = np.frombuffer("".join(addresses).encode(), np.uint8)
    offsets = np.cumsum([0, *map(len, addresses)])
    assert uniq_hash(data, offsets.astype(np.int32)).tolist() == uniq_hash(data, offsets).tolist()


def test_no_strings_no_hashes() -> None:
    assert uniq_hash(np.empty(0, np.uint8), np.zeros(1, np.int32)).tolist() == []
