"""Which partition a key belongs to: Kafka's default (murmur2) partitioner, one key at a time and columns at once.

The formula is that of Java's `Utils.murmur2`: partition = (murmur2(key) & 0x7fffffff) % n.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

_SEED = 0x9747B28C
_M = 0x5BD1E995
_MASK = 0xFFFFFFFF


def murmur2(key: bytes) -> int:
    """The unsigned 32-bit murmur2 of one key."""
    length = len(key)
    h = _SEED ^ length
    whole = length & ~3
    for i in range(0, whole, 4):
        k = int.from_bytes(key[i : i + 4], "little") * _M & _MASK
        k = (k ^ (k >> 24)) * _M & _MASK
        h = (h * _M & _MASK) ^ k
    tail = key[whole:]
    if tail:
        h = (h ^ int.from_bytes(tail, "little")) * _M & _MASK
    h = (h ^ (h >> 13)) * _M & _MASK
    return h ^ (h >> 15)


def partition_of(key: bytes, partitions: int) -> int:
    """The partition of one key among `partitions`."""
    return (murmur2(key) & 0x7FFFFFFF) % partitions


def partitions_of(data: npt.NDArray[np.uint8], offsets: npt.NDArray[Any], partitions: int) -> npt.NDArray[np.int32]:
    """The partition of each of n keys laid end to end.

    `data` holds the keys' bytes, `offsets` (n + 1) where each begins and the last ends. Keys of one length are hashed
    together, four bytes a step, so a column of equal-length ids costs a few array operations.
    """
    starts = np.asarray(offsets[:-1], dtype=np.int64)
    lengths = np.diff(offsets)
    out = np.empty(len(starts), dtype=np.uint32)
    if len(starts) and int(lengths.min()) == int(lengths.max()):
        size = int(lengths[0])
        block = data[int(starts[0]) : int(starts[0]) + size * len(starts)].reshape(len(starts), size)
        out[:] = _murmur2_rows(block)
    else:
        for size in np.unique(lengths):
            rows = np.flatnonzero(lengths == size)
            out[rows] = _murmur2_rows(data[starts[rows][:, None] + np.arange(int(size))])
    return ((out & np.uint32(0x7FFFFFFF)) % np.uint32(partitions)).astype(np.int32)


def _murmur2_rows(block: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint32]:
    count, length = block.shape
    m = np.uint32(_M)
    h = np.full(count, (_SEED ^ length) & _MASK, dtype=np.uint32)
    whole = length & ~3
    words = np.ascontiguousarray(block[:, :whole]).view("<u4")
    for column in range(whole // 4):
        k = words[:, column] * m
        k ^= k >> np.uint32(24)
        k *= m
        h *= m
        h ^= k
    tail = length - whole
    if tail:
        for i in range(tail):
            h ^= block[:, whole + i].astype(np.uint32) << np.uint32(8 * i)
        h *= m
    h ^= h >> np.uint32(13)
    h *= m
    h ^= h >> np.uint32(15)
    return h
