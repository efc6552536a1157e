"""Rows of `path_stats_hourly_rows`: an hour's rollup as columns, without touching its keys one by one."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from streams.traffic.columns import I32, I64
from streams.traffic.delta import Key
from topics import rows as row_schemas

_SCHEMA = row_schemas.PATH_STATS_HOURLY
_LABELS = _SCHEMA.field("dimensions").type
_SUMS = ("requests", "errors", "bytes", "response_time_us", "timed", "max_response_time_us")


class Codes(dict[Any, int]):
    """Numbers values from 0 in the order of their first appearance."""

    def __missing__(self, value: Any) -> int:
        code = self[value] = len(self)
        return code

    def of(self, values: Iterable[Any]) -> I32:
        """The code of each value."""
        return np.fromiter(map(self.__getitem__, values), dtype=np.int32)


class KeyColumns:
    """The keys of one hour as four columns of codes: path, method, status class, dimensions. Keys are only ever added."""

    def __init__(self) -> None:
        self._names = (Codes(), Codes(), Codes(), Codes())
        self._codes: npt.NDArray[np.int32] = np.empty((4, 0), dtype=np.int32)

    def update(self, keys: Sequence[Key]) -> None:
        """Take in the keys that `keys` has beyond those of the last call."""
        new = keys[self._codes.shape[1] :]
        if new:
            columns = [names.of(column) for names, column in zip(self._names, zip(*new, strict=True), strict=True)]
            self._codes = np.concatenate([self._codes, np.stack(columns)], axis=1)

    def arrays(self, rows: I64) -> dict[str, Any]:
        """The key columns of these rows, as the table has them."""
        path, method, status_class, dimensions = self._codes[:, rows]
        return {
            "path": _named(path, self._names[0], str),
            "method": _named(method, self._names[1], str),
            "status_class": _named(status_class, self._names[2], "{}xx".format),
            "dimensions": _labels(dimensions, self._names[3]),
        }


def partials(
    hour_s: int,
    topic: str,
    partition: int,
    version: int,
    keys: dict[str, Any],
    sums: I64,
    visitors: list[bytes],
    times: list[bytes],
) -> Any:
    """A Table of n keys of the hour that begins at `hour_s` (Unix seconds); `sums` is (6, n) as in `Delta`."""
    count = sums.shape[1]
    columns = {
        **keys,
        "hour": np.full(count, hour_s, dtype=np.uint32),
        "source_topic": pa.DictionaryArray.from_arrays(np.zeros(count, dtype=np.int32), pa.array([topic])),
        "source_partition": np.full(count, partition, dtype=np.uint16),
        "version": np.full(count, version, dtype=np.uint64),
        **dict(zip(_SUMS, sums.astype(np.uint64), strict=True)),
        "visitors": pa.array(visitors, pa.binary()),
        "response_time": pa.array(times, pa.binary()),
    }
    return pa.table([columns[name] for name in _SCHEMA.names], schema=_SCHEMA)


def _named(codes: I32, names: Codes, text: Callable[[Any], str]) -> Any:
    """A dictionary column that holds the names in use and no others: an hour may have ten thousand."""
    used, indices = np.unique(codes, return_inverse=True)
    every = list(names)
    dictionary = pa.array([text(every[code]) for code in used.tolist()], pa.string())
    return pa.DictionaryArray.from_arrays(indices.astype(np.int32), dictionary)


def _labels(codes: I32, names: Codes) -> Any:
    """Dimensions as maps; a key holds them as names and values by turns."""
    every = [list(zip(group[::2], group[1::2], strict=True)) for group in names]
    if not any(every):
        return pa.MapArray.from_arrays(
            np.zeros(len(codes) + 1, dtype=np.int32), pa.array([], pa.string()), pa.array([], pa.string())
        )
    return pa.array([every[code] for code in codes.tolist()], _LABELS)
