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

# A digest of at most so many values is not compressed.
SINGLETONS = 256
# Levels are looked up in a table of so many steps; finer ones lie within the first or the last bucket.
LEVELS = 65_536

# The share of the largest values where buckets begin to narrow more slowly.
LAST = 0.01

MEAN_SHIFT = np.uint64(32)
WEIGHT = np.uint64(0xFFFFFFFF)
# The largest finite mean, with no weight: sorts last, adds nothing.
PADDING = np.uint64(0x7F7FFFFF_00000000)


def _scale(q: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """The scale function: how many buckets lie below each level q.

    Response times are read at upper levels, and there by value, so a bucket spans 2 % of what lies above it down to the
    last 1 %, and from there on narrows by the square root, so that their number has a bound. Below the median 1 % of
    all values a bucket is enough. ClickHouse itself merges up to 4 % of N q (1 - q) on reading (its QuantileTDigest.h),
    so a finer scale would be lost; a coarser one showed at p99, for centroids reach twice their bucket.
    """
    above = 1 - q
    outer = 2 - 2 * np.sqrt(above / LAST)
    upper = np.where(above > LAST, -np.log(above), outer - np.log(LAST))
    k: npt.NDArray[np.float64] = 60 * q + 10 * np.sqrt(q) + upper / 0.02
    return k


def _bucket_of_level() -> npt.NDArray[np.int32]:
    """The bucket of each step of LEVELS, numbered from 0 without gaps."""
    buckets = np.floor(_scale((np.arange(LEVELS) + 0.5) / LEVELS))
    return np.unique(buckets, return_inverse=True)[1].astype(np.int32)


BUCKET_OF_LEVEL = _bucket_of_level()
# Centroids of one digest at most.
BUCKETS = int(BUCKET_OF_LEVEL[-1]) + 1


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
    weights = weights_of(digests).astype(np.int64)
    ends = np.cumsum(weights, axis=1)
    if ends[:, -1].max() <= SINGLETONS:
        singletons = weights > 0
        return digests[singletons], singletons.sum(axis=1)
    starts = _starts(weights, ends)
    lasts = np.append(starts[1:], weights.size) - 1
    weight = ends.ravel()[lasts] - (ends - weights).ravel()[starts]
    # Apart for each centroid: differences of a running sum would round differently beside other rows.
    total = np.add.reduceat((means_of(digests) * weights).ravel(), starts)
    real = weight > 0
    means = (total[real] / weight[real]).astype(np.float32)
    counts = np.bincount(starts[real] // weights.shape[1], minlength=len(digests))
    return packed(means, weight[real].astype(np.uint32)), counts


def _starts(weights: I64, ends: I64) -> I64:
    """Where in the flattened matrix each merged centroid begins."""
    totals = ends[:, -1:]
    levels = (2 * ends - weights) * (LEVELS / 2 / totals)
    buckets = BUCKET_OF_LEVEL.take(levels.astype(np.int32), mode="clip")  # padding has level LEVELS
    first = np.empty(weights.shape, np.bool_)
    first[:, 0] = True
    np.not_equal(buckets[:, 1:], buckets[:, :-1], out=first[:, 1:])
    first |= totals <= SINGLETONS  # small digests beside larger ones
    return np.flatnonzero(first)
