"""The classes of size by which figures tell how long conversions take."""

from __future__ import annotations

#: Names, and the bytes from which on a result is of the class; ascending.
SIZE_CLASSES = (("under_10mb", 0), ("under_100mb", 10 << 20), ("over_100mb", 100 << 20))


def size_class(size_bytes: int) -> str:
    """The class of a result."""
    return next(name for name, least in reversed(SIZE_CLASSES) if size_bytes >= least)
