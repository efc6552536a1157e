"""The bytes of small states, written out."""

import struct

import numpy as np
import pytest
from clickhouse_cityhash.cityhash import CityHash64

from streams.sketches.cityhash import uniq_hash
from streams.sketches.tdigest import TDigests
from streams.sketches.uniq import UniqSets
from streams.sketches.varint import varint

WORD = 2**64 - 1


def _uniq_hash_of(string: bytes) -> int:
    x = CityHash64(string)
    for factor in (0xFF51AFD7ED558CCD, 0xC4CEB9FE1A85EC53):
        x = (x ^ x >> 33) * factor & WORD
    return (x ^ x >> 33) & 0xFFFFFFFF


@pytest.mark.parametrize(
    "number, encoded",
    [(0, b"\x00"), (127, b"\x7f"), (128, b"\x80\x01"), (16_384, b"\x80\x80\x01"), (65_536, b"\x80\x80\x04")],
)
def test_varint(number: int, encoded: bytes) -> None:
    assert varint(number) == encoded


def test_uniq_states_are_degree_count_and_ascending_hashes() -> None:
    strings = [b"203.0.113.7", b"2001:db8::7", b""]
    hashes = uniq_hash(np.frombuffer(b"".join(strings), np.uint8), np.cumsum([0, *map(len, strings)]))
    assert hashes.tolist() == [_uniq_hash_of(string) for string in strings]
    sets = UniqSets()
    sets.add(np.array([1, 1, 1, 1], np.uint32), np.append(hashes, hashes[0]))
    assert sets.states(np.arange(2)) == [b"\0\0", b"\0\3" + struct.pack("<3I", *sorted(hashes.tolist()))]


def test_the_hash_zero_is_a_member_like_any_other() -> None:
    sets = UniqSets()
    sets.add(np.zeros(2, np.uint32), np.array([5, 0], np.uint32))
    assert sets.states(np.zeros(1, np.int64)) == [b"\0\2" + struct.pack("<2I", 0, 5)]


def test_tdigest_states_are_count_and_ascending_pairs() -> None:
    digests = TDigests()
    digests.add(np.array([1, 1, 1], np.uint32), np.array([2.5, 0.25, 2.5], np.float32))
    assert digests.states(np.arange(2)) == [b"\0", b"\3" + struct.pack("<6f", 0.25, 1, 2.5, 1, 2.5, 1)]


def test_states_of_no_keys_are_none() -> None:
    no_keys = np.empty(0, np.int64)
    assert UniqSets().states(no_keys) == TDigests().states(no_keys) == []
    UniqSets().load(UniqSets().dump())
    TDigests().load(TDigests().dump())
