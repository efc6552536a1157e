"""Centroids of t-digests and their compression: a scale function, and one pass of merges over many digests at once.

A centroid is packed as (float32 bits of its mean << 32 | its weight), because the bits of floats >= 0 sort as the floats
do. Many digests are a matrix, one a row, filled up with PADDING.
"""

import numpy as np
import numpy.typing as npt

F32 = npt.NDArray[np.float32]
U32 = npt.NDArray[np.uint32]
U64 = npt.NDArray[np.uint64]
I64 = npt.NDArray[np.int64]

# Centroids of one digest at most: the buckets that the scale function cuts the levels 0 to 1 into.
BUCKETS = 300
# A digest of at most so many values is not compressed.
SINGLETONS = 256
# Levels are looked up in a table of so many steps; finer ones lie within the first or the last bucket.
LEVELS = 65_536

MEAN_SHIFT = np.uint64(32)
WEIGHT = np.uint64(0xFFFFFFFF)
# The largest finite mean, with no weight: sorts last, adds nothing.
PADDING = np.uint64(0x7F7FFFFF_00000000)


def _bucket_of_level() -> npt.NDArray[np.int32]:
    """The scale function k(q) = sqrt(q / 2), mirrored at the median, as a table.

    Like Dunning's k1 (arcsine; arXiv 1902.04023) it makes buckets narrower towards both ends by the square root of the
    distance, and bounds their number whatever the number of values.
    """
    q = (np.arange(LEVELS) + 0.5) / LEVELS
    k = np.where(q < 0.5, np.sqrt(q / 2), 1 - np.sqrt((1 - q) / 2))
    table: npt.NDArray[np.int32] = np.append(np.floor(k * BUCKETS), BUCKETS).astype(np.int32)
    return table


BUCKET_OF_LEVEL = _bucket_of_level()


def packed(means: F32, weights: U32 | np.uint32) -> U64:
    """Pack means >= 0 and their weights, or one weight for all."""
    centroids: U64 = means.view(np.uint32).astype(np.uint64)
    centroids <<= MEAN_SHIFT
    centroids |= weights
    return centroids


def means_of(centroids: U64) -> F32:
    """The means of packed centroids."""
    return (centroids >> MEAN_SHIFT).astype(np.uint32).view(np.float32)


def weights_of(centroids: U64) -> U32:
    """The weights of packed centroids."""
    return centroids.astype(np.uint32)


def compressed(digests: U64) -> tuple[U64, I64]:
    """Merge the neighbours in each row that share a bucket; `digests` is sorted in place.

    A centroid's bucket is that of the level of its middle. Two neighbours of one bucket weigh less than two buckets
    together, so repeated passes do not let centroids grow. Returns the centroids of all rows end to end, ascending in
    a row, and how many each row has. A row comes out the same whatever rows stand beside it.
    """
    digests.sort(axis=1)
    weights = (digests & WEIGHT).astype(np.float64)
    ends = np.cumsum(weights, axis=1)
    starts = _starts(weights, ends)
    weighted = means_of(digests) * weights
    weight = np.add.reduceat(weights.ravel(), starts)
    total = np.add.reduceat(weighted.ravel(), starts)
    real = weight > 0
    means = (total[real] / weight[real]).astype(np.float32)
    counts = np.bincount(starts[real] // digests.shape[1], minlength=len(digests))
    return packed(means, weight[real].astype(np.uint32)), counts


def _starts(weights: npt.NDArray[np.float64], ends: npt.NDArray[np.float64]) -> I64:
    """Where in the flattened matrix each merged centroid begins."""
    totals = ends[:, -1:]
    levels = (ends - 0.5 * weights) * (LEVELS / totals)
    buckets = BUCKET_OF_LEVEL[levels.astype(np.int32)]
    first = np.empty(weights.shape, np.bool_)
    first[:, 0] = True
    np.not_equal(buckets[:, 1:], buckets[:, :-1], out=first[:, 1:])
    first |= totals <= SINGLETONS
    return np.flatnonzero(first)
