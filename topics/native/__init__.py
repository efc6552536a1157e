"""Compiled kernels of the hot path: record batches and traffic events into columns, hashes, dictionaries, groups.

Plain C without Python's API (`*.c` beside this file), built at installation and loaded here; each function wraps one kernel
in the shapes of numpy. Arrays are made contiguous and of the right type where they are not, so that no caller can
hand a kernel anything else.
"""

from __future__ import annotations

import ctypes
import hashlib
import secrets
from ctypes import c_double, c_int32, c_int64, c_uint64, c_void_p
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

U8 = npt.NDArray[np.uint8]
I32 = npt.NDArray[np.int32]
I64 = npt.NDArray[np.int64]
U64 = npt.NDArray[np.uint64]
F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]

LIBRARY = Path(__file__).with_name("kernels.so")


def _load() -> ctypes.CDLL:
    try:
        library = ctypes.CDLL(str(LIBRARY))
        library.sw_sources.restype = ctypes.c_char_p
        built_from = library.sw_sources().decode()
    except (OSError, AttributeError) as error:
        raise ImportError(
            f"{LIBRARY} is not usable ({error}); `make setup` builds it, as does `pip install .`"
        ) from None
    sources = b"".join(path.read_bytes() for path in sorted(LIBRARY.parent.glob("*.[ch]")))
    if built_from != hashlib.sha256(sources).hexdigest():
        raise ImportError(f"{LIBRARY} was built from other sources than lie beside it; `make setup` builds it anew")
    return library


_library = _load()


def _kernel(name: str, result: Any, *arguments: Any) -> Any:
    function = getattr(_library, name)
    function.restype, function.argtypes = result, arguments
    return function


_P, _N = c_void_p, c_int64
_records = _kernel("sw_records", c_int64, _P, _N, _N, _N, _N, _N, _N, _P)
_header = _kernel("sw_header", None, _P, _P, _P, _N, _P, _N, _P, _P)
_partitions = _kernel("sw_partitions", None, _P, _P, _P, _N, _N, _P)
_digests = _kernel("sw_digests", None, _P, _P, _P, _N, _P)
_words_new = _kernel("sw_words_new", c_void_p, c_uint64)
_words_free = _kernel("sw_words_free", None, _P)
_words_codes = _kernel("sw_words_codes", c_int32, _P, _P, _P, _P, _N, _P)
_words_count = _kernel("sw_words_count", c_int64, _P)
_words_bytes = _kernel("sw_words_bytes", c_int64, _P)
_words_copy = _kernel("sw_words_copy", None, _P, _P, _P)
_gather = _kernel("sw_gather", None, _P, _P, _P, _N, _P)
_groups = _kernel("sw_groups", c_int64, _P, _N, _P, _N, _P, _P)
_sums = _kernel("sw_sums", None, _P, _P, _P, _P, _N, _N, _P)
_deal = _kernel("sw_deal", None, _P, _P, _N, _P, _P)


_events = _kernel("sw_events", None, _P, _P, _P, _N, _P, _P, _P, _P, _P, _P)

#: Nobody who writes strings for a dictionary to number knows it.
_SEED = secrets.randbits(64)

#: What `read_events` says of a value.
PLAIN, UNKNOWN_ADDRESS, CLOSER_LOOK = range(3)
#: The texts and numbers of an event, in the order of `Events`' columns.
ID, METHOD, PATH, ADDRESS, AGENT, DIMENSIONS = range(6)
TIMESTAMP, STATUS, BYTES = range(3)
#: The columns of `split_records`.
OFFSET, TIME, KEY_AT, KEY_SIZE, VALUE_AT, VALUE_SIZE, HEADERS_AT, HEADERS_SIZE = range(8)
#: The smallest record: six varints and a byte.
_RECORD_BYTES = 7


@dataclass(frozen=True, slots=True)
class Texts:
    """n strings in a buffer: string i is `data[at[i] : at[i] + size[i]]`; a size below 0 is an absent one."""

    data: U8
    at: I64
    size: I64

    def __len__(self) -> int:
        return len(self.at)

    def take(self, rows: npt.NDArray[Any]) -> Texts:
        """These strings, by index or mask."""
        return Texts(self.data, self.at[rows], self.size[rows])

    def bytes_of(self, row: int) -> bytes:
        """One string."""
        start = int(self.at[row])
        return self.data[start : start + int(self.size[row])].tobytes()


def texts_of(strings: list[bytes]) -> Texts:
    """Strings laid end to end."""
    size = np.array([len(string) for string in strings], dtype=np.int64)
    return Texts(np.frombuffer(b"".join(strings), dtype=np.uint8), np.cumsum(size) - size, size)


def split_records(
    payload: U8, count: int, base: int, base_offset: int, next_offset: int, first_ms: int
) -> tuple[I64, bool]:
    """The records of one batch, decompressed: int64[8, n] (`OFFSET` to `HEADERS_SIZE`), and whether all `count` were read.

    Places are counted from `base` before the payload; a size of -1 is null. Headers are as they lie in the record, their
    count first, or of size 0. What follows the first record that makes no sense is left out, as does one whose offset is
    not in `base_offset` to `next_offset` or not above the one before.
    """
    room = max(0, min(count, len(payload) // _RECORD_BYTES))
    columns = np.empty((8, room), dtype=np.int64)
    offsets = next_offset - base_offset
    read = _records(_at(payload), len(payload), room, base, base_offset, offsets, first_ms, _at(columns))
    return columns[:, :read], read == count


def header_of(headers: Texts, name: bytes) -> Texts:
    """The first value of header `name` of each of n records, of size -1 for none or null; `headers` as in records."""
    at, size = np.empty(len(headers), dtype=np.int64), np.empty(len(headers), dtype=np.int64)
    wanted = np.frombuffer(name, dtype=np.uint8)
    _header(*_texts(headers), _at(wanted), len(wanted), _at(at), _at(size))
    return Texts(headers.data, at, size)


def partitions_of(keys: Texts, partitions: int) -> I64:
    """The partition of each of n keys among `partitions`: Kafka's default, murmur2 as in `topics.partitioning`."""
    out = np.empty(len(keys), dtype=np.int64)
    _partitions(*_texts(keys), partitions, _at(out))
    return out


def digests_of(texts: Texts) -> U8:
    """The 128-bit digest of each of n strings (MurmurHash3 x64 128), uint8[n, 16]: stable between versions and machines."""
    out = np.empty((len(texts), 2), dtype=np.uint64)
    _digests(*_texts(texts), _at(out))
    return out.view(np.uint8)


def gathered(texts: Texts) -> U8:
    """n strings, none of them absent, end to end."""
    out = np.empty(int(texts.size.sum()), dtype=np.uint8)
    _gather(*_texts(texts), _at(out))
    return out


class Words:
    """A dictionary that grows: numbers strings from 0 in the order in which they first come."""

    def __init__(self) -> None:
        self._words = _words_new(_SEED)
        if not self._words:
            raise MemoryError("no memory for a dictionary")

    def __del__(self) -> None:
        _words_free(self._words)

    def __len__(self) -> int:
        return int(_words_count(self._words))

    @property
    def nbytes(self) -> int:
        """Bytes of all words."""
        return int(_words_bytes(self._words))

    def codes(self, texts: Texts) -> I32:
        """The code of each of n strings, -1 for an absent one. Raises MemoryError."""
        out = np.empty(len(texts), dtype=np.int32)
        if not _words_codes(self._words, *_texts(texts), _at(out)):
            raise MemoryError(f"no memory for the words of a dictionary that has {len(self)}")
        return out

    def array(self) -> Any:
        """All words as a pyarrow string array, in the order of their codes; they must be UTF-8."""
        return pa.StringArray.from_buffers(len(self), *map(pa.py_buffer, self.buffers()))

    def buffers(self) -> tuple[I32, U8]:
        """Where each of n words begins and the last ends, int32[n + 1], and their bytes."""
        offsets = np.empty(len(self) + 1, dtype=np.int32)
        data = np.empty(self.nbytes, dtype=np.uint8)
        _words_copy(self._words, _at(data), _at(offsets))
        return offsets, data


def group(keys: I64) -> tuple[I64, I64]:
    """Rows grouped by a number: the distinct numbers in order of first appearance, and each row's place among them."""
    keys = _contiguous(keys)
    groups, distinct = np.empty(len(keys), dtype=np.int64), np.empty(len(keys), dtype=np.int64)
    slots = np.zeros(1 << (2 * len(keys)).bit_length(), dtype=np.int32)
    count = _groups(_at(keys), len(keys), _at(slots), len(slots), _at(groups), _at(distinct))
    return distinct[:count], groups


def sums_of(groups: I64, status: I64, size: I64, us: I64, count: int) -> I64:
    """What the rows of each of `count` groups add up to, int64[6, count]: requests, errors (status >= 500), bytes,
    microseconds, requests with a time, longest time. A size or time below 0 is absent; bytes stay at 2^63 - 1."""
    sums = np.zeros((6, count), dtype=np.int64)
    columns = [_contiguous(column) for column in (groups, status, size, us)]
    _sums(*map(_at, columns), len(groups), count, _at(sums))
    return sums


def dealt(groups: I64, values: F64, counts: I64) -> F32:
    """The values of each group in order, group after group; NaN is absent, and `counts` says how many each group has."""
    groups, values = _contiguous(groups), np.ascontiguousarray(values, dtype=np.float64)
    out, following = np.empty(int(counts.sum()), dtype=np.float32), _contiguous(np.cumsum(counts) - counts)
    _deal(_at(groups), _at(values), len(groups), _at(following), _at(out))
    return out


class EventLimits(ctypes.Structure):
    """The largest of everything in a plain event; see `topics.traffic`."""

    _fields_ = [
        ("id_chars", c_int64),
        ("short_chars", c_int64),
        ("path_chars", c_int64),
        ("agent_chars", c_int64),
        ("dimensions", c_int64),
        ("dimension_chars", c_int64),
        ("timestamp_ms", c_int64),
        ("bytes", c_int64),
        ("response_ms", c_double),
    ]


@dataclass(frozen=True, slots=True)
class Events:
    """Columns of n values read as events. `look[i]` says whether value i is `PLAIN`, plain but for an address that is no
    IPv4, or to be looked at closely; its columns then mean nothing.

    `at` and `size` are (6, n), `ID` to `DIMENSIONS`, the last as written; `number` is (3, n), `TIMESTAMP` to `BYTES`. An
    absent text has size -1, absent bytes are -1, an absent `response_ms` is NaN.
    """

    at: I64
    size: I64
    number: I64
    response_ms: F64
    look: U8


def read_events(values: Texts, limits: EventLimits) -> Events:
    """Read n values as traffic events; see `Events`. Total."""
    count = len(values)
    at, size = np.empty((6, count), dtype=np.int64), np.empty((6, count), dtype=np.int64)
    number, response_ms = np.empty((3, count), dtype=np.int64), np.empty(count)
    look = np.empty(count, dtype=np.uint8)
    outputs = (_at(at), _at(size), _at(number), _at(response_ms), _at(look))
    _events(*_texts(values), ctypes.addressof(limits), *outputs)
    return Events(at, size, number, response_ms, look)


def _texts(texts: Texts) -> tuple[int, int, int, int]:
    at, size = texts.at, texts.size
    assert at.dtype == size.dtype == np.int64 and at.flags.c_contiguous and size.flags.c_contiguous
    assert len(at) == len(size) and texts.data.dtype == np.uint8 and texts.data.flags.c_contiguous
    return _at(texts.data), _at(at), _at(size), len(at)


def _contiguous(array: npt.NDArray[Any]) -> I64:
    return np.ascontiguousarray(array, dtype=np.int64)


def _at(array: npt.NDArray[Any]) -> int:
    return int(array.ctypes.data)
