"""CityHash64 1.0.2, the variant that ClickHouse froze, over columns of strings.

The vectors run over the strings, not along them: each length class of CityHash is one pass of array arithmetic.
"""

import numpy as np
import numpy.typing as npt

U8 = npt.NDArray[np.uint8]
U32 = npt.NDArray[np.uint32]
U64 = npt.NDArray[np.uint64]
I64 = npt.NDArray[np.int64]
Offsets = npt.NDArray[np.int32] | npt.NDArray[np.int64]

K0 = np.uint64(0xC3A5C85C97CB3127)
K1 = np.uint64(0xB492B66FBE98F273)
K2 = np.uint64(0x9AE16A3B2F90404F)
K3 = np.uint64(0xC949D7C7509E6557)
MUL = np.uint64(0x9DDFEA08EB382D69)
BYTE = np.uint64(0xFF)
HALF = np.uint64(0xFFFFFFFF)
FINALISE_1 = np.uint64(0xFF51AFD7ED558CCD)
FINALISE_2 = np.uint64(0xC4CEB9FE1A85EC53)

# Rows hashed at a time, so that the temporaries of one pass stay in the second-level cache.
BLOCK_ROWS = 16_384


def cityhash64(data: U8, offsets: Offsets) -> U64:
    """Hash n byte strings laid end to end.

    `data` holds the bytes and string i is `data[offsets[i]:offsets[i + 1]]`, as in an Arrow string column; offsets may
    start above 0. Returns uint64[n]. Equal to CityHash64 1.0.2 for any bytes; of strings over 64 bytes, each further 64
    bytes of the longest cost one more pass.
    """
    bounds = offsets.astype(np.int64)
    words = _overlapping_words(data, int(bounds[0]), int(bounds[-1]))
    bounds -= bounds[0]
    hashes = np.empty(len(bounds) - 1, np.uint64)
    for low in range(0, len(hashes), BLOCK_ROWS):
        block = bounds[low : low + BLOCK_ROWS + 1]
        hashes[low : low + BLOCK_ROWS] = _hash_block(words, block[:-1], np.diff(block))
    return hashes


def uniq_hash(data: U8, offsets: Offsets) -> U32:
    """Hash n strings as ClickHouse's `uniq(String)` does: the low half of the finalised CityHash64, uint32[n].

    Shapes as for `cityhash64`. The finaliser is MurmurHash3's, which ClickHouse calls intHash64.
    """
    x = cityhash64(data, offsets)
    x ^= x >> np.uint64(33)
    x *= FINALISE_1
    x ^= x >> np.uint64(33)
    x *= FINALISE_2
    x ^= x >> np.uint64(33)
    return x.astype(np.uint32)


def _overlapping_words(data: U8, low: int, high: int) -> U64:
    """View bytes low..high as little-endian words, one beginning at every byte; what lies past the end reads as zero."""
    padded = np.zeros(high - low + 8, np.uint8)
    padded[: high - low] = data[low:high]
    words: U64 = np.ndarray((high - low + 1,), "<u8", padded.data, 0, (1,))
    return words


def _hash_block(words: U64, starts: I64, lengths: I64) -> U64:
    hashes = np.full(len(starts), K2)
    for shortest, longest, hash_class in LENGTH_CLASSES:
        rows = np.flatnonzero((lengths >= shortest) & (lengths <= longest))
        if len(rows):
            hashes[rows] = hash_class(words, starts[rows], lengths[rows])
    return hashes


def _hash_1_to_3(words: U64, at: I64, lengths: I64) -> U64:
    first, middle, last = (words[at + i] & BYTE for i in (0, lengths >> 1, lengths - 1))
    y: U64 = first + (middle << np.uint64(8))
    z: U64 = lengths.astype(np.uint64) + (last << np.uint64(2))
    return _shift_mix(y * K2 ^ z * K3) * K2


def _hash_4_to_8(words: U64, at: I64, lengths: I64) -> U64:
    first = words[at] & HALF
    last = words[at + lengths - 4] & HALF
    return _mix(lengths.astype(np.uint64) + (first << np.uint64(3)), last)


def _hash_9_to_16(words: U64, at: I64, lengths: I64) -> U64:
    n = lengths.astype(np.uint64)
    last: U64 = words[at + lengths - 8]
    return _mix(words[at], _rotate(last + n, n)) ^ last


def _hash_17_to_32(words: U64, at: I64, lengths: I64) -> U64:
    end = at + lengths
    a, b = words[at] * K1, words[at + 8]
    c, d = words[end - 8] * K2, words[end - 16] * K0
    return _mix(_rotate(a - b, 43) + _rotate(c, 30) + d, a + _rotate(b ^ K3, 20) - c + lengths.astype(np.uint64))


def _hash_33_to_64(words: U64, at: I64, lengths: I64) -> U64:
    end = at + lengths
    vf, vs = _chain(words, at, words[at] + (lengths.astype(np.uint64) + words[end - 16]) * K0)
    wf, ws = _chain(words, end - 32, words[at + 16] + words[end - 32])
    r = _shift_mix((vf + ws) * K2 + (wf + vs) * K0)
    return _shift_mix(r * K0 + vs) * K2


def _chain(words: U64, at: I64, a: U64) -> tuple[U64, U64]:
    """Chain the 32 bytes at `at`, the first word of which is already in `a`."""
    z = words[at + 24]
    b, c = _rotate(a + z, 52), _rotate(a, 37)
    a = a + words[at + 8]
    c += _rotate(a, 7)
    a += words[at + 16]
    return a + z, b + _rotate(a, 31) + c


def _hash_over_64(words: U64, at: I64, lengths: I64) -> U64:
    end, n = at + lengths, lengths.astype(np.uint64)
    x, y, z = words[at], words[end - 16] ^ K1, words[end - 56] ^ K0
    v = _weak(words, end - 64, n, y)
    w = _weak(words, end - 32, n * K1, np.full(len(n), K0))
    z += _shift_mix(v[1]) * K1
    state = np.stack([_rotate(z + x, 39) * K1, _rotate(y, 33) * K1, z, *v, *w])
    blocks = (lengths - 1) >> 6
    for done in range(int(blocks.max())):
        live = np.flatnonzero(blocks > done)
        state[:, live] = _absorb_64(words, at[live] + 64 * done, state[:, live])
    x, y, z, vf, vs, wf, ws = state
    return _mix(_mix(vf, wf) + _shift_mix(y) * K1 + z, _mix(vs, ws) + x)


def _absorb_64(words: U64, at: I64, state: U64) -> tuple[U64, ...]:
    x, y, z, vf, vs, wf, ws = state
    x = _rotate(x + y + vf + words[at + 16], 37) * K1 ^ ws
    y = _rotate(y + vs + words[at + 48], 42) * K1 ^ vf
    z = _rotate(z ^ wf, 33)
    v = _weak(words, at, vs * K1, x + wf)
    w = _weak(words, at + 32, z + ws, y)
    return z, y, x, *v, *w


def _weak(words: U64, at: I64, a: U64, b: U64) -> tuple[U64, U64]:
    """CityHash's cheap hash of the 32 bytes at `at` under two seeds."""
    last = words[at + 24]
    a = a + words[at]
    b = _rotate(b + a + last, 21)
    total = a + words[at + 8] + words[at + 16]
    return total + last, b + _rotate(total, 44) + a


def _mix(low: U64, high: U64) -> U64:
    """CityHash's Hash128to64."""
    a = (low ^ high) * MUL
    a = _shift_mix(a)
    b = (high ^ a) * MUL
    return _shift_mix(b) * MUL


def _shift_mix(x: U64) -> U64:
    return x ^ (x >> np.uint64(47))


def _rotate(x: U64, shift: int | U64) -> U64:
    """Rotate right by 1 to 63 bits."""
    right = np.asarray(shift, np.uint64)
    rotated: U64 = (x >> right) | (x << (np.uint64(64) - right))
    return rotated


LENGTH_CLASSES = (
    (1, 3, _hash_1_to_3),
    (4, 8, _hash_4_to_8),
    (9, 16, _hash_9_to_16),
    (17, 32, _hash_17_to_32),
    (33, 64, _hash_33_to_64),
    (65, np.iinfo(np.int64).max, _hash_over_64),
)
