"""Cutting an insert that spans many ClickHouse partitions: the engine refuses one block over 100 of them."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pyarrow as pa

from topics.rows import PATH_STATS_HOURLY_ROWS, TRAFFIC_EVENTS_ROWS

#: Table -> (time column, width of a bin in its unit). A bin lies within one day, or within two months.
_BINS = {TRAFFIC_EVENTS_ROWS: ("timestamp_ms", 86_400_000), PATH_STATS_HOURLY_ROWS: ("hour", 28 * 86_400)}
#: Bins of one insert; two partitions a bin stay below the engine's 100.
BINS_MAX = 48


def slices(table: str, data: pa.Table) -> Iterator[pa.Table]:
    """`data` itself, or parts of it that each span few enough partitions; order within a part is kept."""
    if table not in _BINS or data.num_rows <= BINS_MAX:
        yield data
        return
    column, width = _BINS[table]
    bins = data.column(column).to_numpy() // width
    if int(bins.max()) - int(bins.min()) < BINS_MAX:
        yield data
        return
    distinct, rank = np.unique(bins, return_inverse=True)
    for first in range(0, len(distinct), BINS_MAX):
        yield data.filter(pa.array(rank // BINS_MAX == first // BINS_MAX))
