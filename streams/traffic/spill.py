"""Spill files: runs of ids that outgrew the memory limit, in scratch files that live no longer than their process.

A file holds the three columns of a run one after the other. Its filter and every 512th id stay in memory, so that an
absent id costs no read in 96 of 100 cases and a present one touches one page of each column.
"""

from __future__ import annotations

import errno
import fcntl
import itertools
import mmap
import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np
import numpy.typing as npt

from streams.traffic.runs import ID_BYTES, U64, Columns, Filter, Indices, Merging, Run

_PAGE_IDS = 512
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_NUMBERS = itertools.count()


class SpillFull(Exception):
    """Ids that must be remembered fit neither in memory nor on disk; ingest stops rather than forget them."""


class SpillFolder:
    """A folder for spill files, which any number of processes may share.

    Files are named by process id and locked by the process that made them. What a dead process left is removed when
    the folder is opened, what this one made when it is closed.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._files: set[SpillFile] = set()
        path.mkdir(parents=True, exist_ok=True)
        for stale in path.glob("dedup-*.spill"):
            _remove_if_unlocked(stale)

    @property
    def nbytes(self) -> int:
        """Bytes on disk."""
        return sum(file.nbytes for file in self._files)

    def create(self, ids: int) -> SpillFile:
        """An empty file that will hold `ids` ids."""
        file = None
        while file is None:
            # In containers, processes that share a folder may share a process id too.
            with suppress(FileExistsError):
                file = SpillFile(self._path / f"dedup-{os.getpid()}-{next(_NUMBERS)}.spill", ids)
        self._files.add(file)
        return file

    def remove(self, file: SpillFile) -> None:
        """Delete a file; arrays still mapped to it stay readable."""
        self._files.discard(file)
        file.close()

    def close(self) -> None:
        """Delete every file made here."""
        for file in list(self._files):
            self.remove(file)


class SpillFile:
    """One file of columns: appended to in order of ids, then mapped."""

    def __init__(self, path: Path, ids: int) -> None:
        self._path = path
        self._ids = ids
        self._written = 0
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
        fcntl.flock(self._fd, fcntl.LOCK_EX)

    @property
    def nbytes(self) -> int:
        """Bytes on disk once it is written."""
        return self._ids * ID_BYTES

    def append(self, columns: Columns) -> None:
        """Write the next ids. Raises `SpillFull` when the disk, the quota or the file size limit is reached."""
        for column, (offset, width) in zip(columns, self._layout(), strict=True):
            self._write(np.ascontiguousarray(column), offset + self._written * width)
        self._written += len(columns.hi)

    def read(self, start: int, stop: int) -> Columns:
        """Copies of the ids from `start` to `stop`, read past the map so that a scan does not fill memory."""
        (hi, hi_width), (lo, lo_width), (expiry, expiry_width) = self._layout()
        count = stop - start
        return Columns(
            np.frombuffer(self._read(hi + start * hi_width, count * hi_width), dtype=np.uint64),
            np.frombuffer(self._read(lo + start * lo_width, count * lo_width), dtype=np.uint64),
            np.frombuffer(self._read(expiry + start * expiry_width, count * expiry_width), dtype=np.uint16),
        )

    def map(self) -> Columns:
        """The written columns, mapped for look-ups at random places."""
        (hi, _), (lo, _), (expiry, _) = self._layout()
        pages = mmap.mmap(self._fd, self.nbytes, access=mmap.ACCESS_READ)
        pages.madvise(mmap.MADV_RANDOM)
        return Columns(
            np.frombuffer(pages, dtype=np.uint64, count=self._ids, offset=hi),
            np.frombuffer(pages, dtype=np.uint64, count=self._ids, offset=lo),
            np.frombuffer(pages, dtype=np.uint16, count=self._ids, offset=expiry),
        )

    def close(self) -> None:
        """Delete the file and let its lock go."""
        self._path.unlink(missing_ok=True)
        os.close(self._fd)

    def _layout(self) -> tuple[tuple[int, int], tuple[int, int], tuple[int, int]]:
        """Offset and width of each column."""
        return (0, 8), (8 * self._ids, 8), (16 * self._ids, 2)

    def _write(self, column: npt.NDArray[np.generic], offset: int) -> None:
        left = column.data.cast("B")
        try:
            while left:
                wrote = os.pwrite(self._fd, left, offset)
                left, offset = left[wrote:], offset + wrote
        except OSError as error:
            if error.errno not in _FULL:
                raise
            raise SpillFull(
                f"cannot spill {self.nbytes} bytes of event ids to {self._path}: {error.strerror}; "
                "free disk space or raise the memory limit of the dedup index, then start again"
            ) from error

    def _read(self, offset: int, size: int) -> bytes:
        data = os.pread(self._fd, size, offset)
        while len(data) < size:
            more = os.pread(self._fd, size - len(data), offset + len(data))
            if not more:
                raise OSError(errno.EIO, "spill file is shorter than what was written to it", str(self._path))
            data += more
        return data


class SpilledRun(Run):
    """A run whose columns lie in a file."""

    __slots__ = ("_fences", "file")

    def __init__(self, file: SpillFile, filter_: Filter, counts: dict[int, int], fences: U64) -> None:
        super().__init__(file.map(), filter_, counts)
        self.file = file
        self._fences = fences

    @property
    def nbytes(self) -> int:
        return self.filter.words.nbytes + self._fences.nbytes

    def slice(self, start: int, stop: int) -> Columns:
        return self.file.read(start, stop)

    def lower_bound(self, hi: U64) -> Indices:
        """Where each half stands: the fence says in which page, halving finds the place within it."""
        page = np.searchsorted(self._fences, hi)
        at, stop = np.maximum((page - 1) * _PAGE_IDS + 1, 0), np.minimum(page * _PAGE_IDS, len(self))
        step = _PAGE_IDS // 2
        while step:
            ahead = at + step
            at += step * ((ahead <= stop) & (self.columns.hi.take(ahead - 1, mode="clip") < hi))
            step //= 2
        return at


class Rewrite:
    """Merges runs into one spill file, a few ids a step, while the runs go on answering.

    Ids that expire before `floor` are left out.
    """

    def __init__(self, folder: SpillFolder, sources: Sequence[Run], floor: int) -> None:
        self.sources = sources
        self._merging = Merging(sources, floor)
        ids = sum(self._merging.counts.values())
        self._folder = folder
        self._filter = Filter(ids, dense=True)
        self._fences: list[U64] = []
        self._written = 0
        self._file = folder.create(ids)

    def step(self, ids: int) -> SpilledRun | None:
        """Merge about `ids` more ids; the finished run, once there are no more. After `SpillFull` the file is gone."""
        try:
            self._append(self._merging.next(ids))
        except BaseException:
            self.abandon()
            raise
        if not self._merging.done:
            return None
        return SpilledRun(self._file, self._filter, self._merging.counts, np.concatenate(self._fences))

    def abandon(self) -> None:
        """Delete what was written."""
        self._folder.remove(self._file)

    def _append(self, columns: Columns) -> None:
        self._file.append(columns)
        self._filter.add(columns.hi, columns.lo)
        self._fences.append(columns.hi[-self._written % _PAGE_IDS :: _PAGE_IDS].copy())
        self._written += len(columns.hi)


def _remove_if_unlocked(path: Path) -> None:
    """Delete a spill file that no living process has locked."""
    try:
        fd = os.open(path, os.O_RDWR)
    except FileNotFoundError:
        return
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        path.unlink(missing_ok=True)
    except BlockingIOError:
        pass
    finally:
        os.close(fd)
