"""The memory of event ids: which ids of a batch are new, kept exactly until their hour has passed.

Ids lie in sorted runs that are merged by size (a log-structured merge tree), so adding and looking up are a few array
operations a batch. Past the memory limit the largest runs move to spill files; none is forgotten before its hour.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from streams.traffic.runs import (
    U16,
    Columns,
    Mask,
    Run,
    add_counts,
    halves,
    merge,
    needles,
    run_of,
    sorted_order,
    ties,
)
from streams.traffic.spill import Rewrite, SpilledRun, SpillFolder, SpillFull

# Runs of like size that are merged at once: more make fewer merges and more runs to look in.
_FAN_IN = 4
# A merge in memory takes about 30 ns an id and the fold waits for it, so runs stop growing about here (0.1 s).
_FULL_RUN_IDS = 1 << 22
# Files are merged a few ids at a time, this many for each id added: more than the number of times an id is rewritten.
_REWRITE_RATE = 8
# Blocks are loaded together until there are as many bytes, since small ones cost a call each.
_LOAD_BYTES = 1 << 21
_MAX_CODE = 65534

_R = TypeVar("_R", bound=Run)


class DedupIndex:
    """The ids held by one partition.

    An id is held from the batch that brings it until `expire` passes its hour; an id seen again while held keeps its
    first hour. Answers and blocks do not depend on how a sequence of ids was split into batches.
    `memory_bytes` bounds the ids held in memory (the filters of spilled ids, 1 byte each, come on top, as does one
    batch); without a `spill` folder, more ids than that raise `SpillFull`.
    """

    def __init__(self, *, memory_bytes: int, spill: SpillFolder | None) -> None:
        self._memory_bytes = memory_bytes
        self._spill = spill
        self._recent: list[Run] = []
        self._spilled: list[SpilledRun] = []
        self._rewrite: Rewrite | None = None
        self._new: list[tuple[U16, npt.NDArray[np.uint8]]] = []
        self._loaded: list[tuple[int, bytes]] = []
        self._loaded_bytes = 0
        self._base: int | None = None
        self._floor_hour: int | None = None

    def add(self, digests: npt.NDArray[np.uint8], expiry_hours: npt.NDArray[np.int64]) -> Mask:
        """Which of n ids are new: not held, and the first of their kind in this batch.

        `digests` is (n, 16), 128-bit hashes in record order; `expiry_hours` (n,) the hour since the epoch after which
        each is dropped (an hour that `expire` has passed counts as the earliest one still held). Raises `SpillFull`
        before anything of the batch is applied.
        """
        self._settle()
        self._make_room(len(digests))
        if not len(digests):
            return np.zeros(0, dtype=np.bool_)
        codes = self._codes(expiry_hours)
        new = self._insert(digests, codes)
        self._new.append((codes[new], digests[new]))
        return new

    def take_new(self) -> list[tuple[int, bytes]]:
        """The ids added since the last call: (expiry hour, digests end to end in order of arrival), sorted by hour."""
        taken, self._new = self._new, []
        if not taken:
            return []
        codes = np.concatenate([block[0] for block in taken])
        order = np.argsort(codes, kind="stable")
        order = order[codes[order] >= self._floor()]
        codes, digests = codes[order], np.concatenate([block[1] for block in taken])[order]
        edges = [*np.flatnonzero(np.diff(codes, prepend=np.uint16(_MAX_CODE + 1))).tolist(), len(codes)]
        return [(self._hour(int(codes[start])), digests[start:stop].tobytes()) for start, stop in pairwise(edges)]

    def load(self, expiry_hour: int, packed: bytes) -> None:
        """Restore one block that `take_new` gave; ids held already keep their hour. Raises `SpillFull`."""
        if len(packed) % 16:
            raise ValueError(f"a block of {len(packed)} bytes for hour {expiry_hour} is not made of 16-byte digests")
        self._loaded.append((expiry_hour, packed))
        self._loaded_bytes += len(packed)
        if self._loaded_bytes >= _LOAD_BYTES:
            self._settle()

    def expire(self, hour: int) -> list[int]:
        """Drop every id whose expiry hour is before `hour`; the hours dropped, in order."""
        self._settle()
        before = self._floor()
        if self._floor_hour is not None and hour <= self._floor_hour:
            return []
        self._floor_hour = hour
        gone = [code for code in add_counts((run.counts for run in self._runs()), before) if code < self._floor()]
        hours = [self._hour(code) for code in sorted(gone)]
        self._drop_expired()
        return hours

    def close(self) -> None:
        """Delete the spill files of this index, which must not be used after."""
        if self._rewrite is not None:
            self._rewrite.abandon()
        self._replace_spilled(self._spilled)

    def __len__(self) -> int:
        self._settle()
        return sum(run.live(self._floor()) for run in self._runs())

    @property
    def bytes_held(self) -> int:
        """Bytes of memory in arrays: runs, filters, and what awaits `take_new` or was just loaded."""
        waiting = sum(codes.nbytes + digests.nbytes for codes, digests in self._new)
        return sum(run.nbytes for run in self._runs()) + waiting + self._loaded_bytes

    @property
    def bytes_spilled(self) -> int:
        """Bytes of spill files."""
        return sum(run.file.nbytes for run in self._spilled)

    def _runs(self) -> list[Run]:
        return [*self._recent, *self._spilled]

    def _insert(self, digests: npt.NDArray[np.uint8], codes: U16) -> Mask:
        hi, lo = halves(digests)
        order = sorted_order(hi, lo)
        hi, lo = hi[order], lo[order]
        new_sorted = self._unheld(hi, lo)
        new_sorted[1:] &= ~ties(hi, lo)[1]
        fresh = order[new_sorted]
        new = np.zeros(len(order), dtype=np.bool_)
        new[fresh] = True
        if len(fresh):
            self._recent.append(run_of(Columns(hi[new_sorted], lo[new_sorted], codes[fresh])))
            self._merge_recent()
        return new

    def _unheld(self, hi: npt.NDArray[np.uint64], lo: npt.NDArray[np.uint64]) -> Mask:
        wanted, floor = needles(hi, lo), self._floor()
        unheld = np.ones(len(hi), dtype=np.bool_)
        for run in self._runs():
            unheld[run.held(wanted, floor)] = False
        return unheld

    def _merge_recent(self) -> None:
        # A merge holds its result beside its sources: so at most half of the limit on top.
        most = min(_FULL_RUN_IDS, self._memory_bytes // 80)
        while group := _like_sized(self._recent, most):
            self._recent = [*_without(self._recent, group), merge(group, self._floor())]

    def _settle(self) -> None:
        """Take in the loaded blocks."""
        if not self._loaded:
            return
        self._make_room(self._loaded_bytes // 16)
        blocks, self._loaded, self._loaded_bytes = self._loaded, [], 0
        digests = np.frombuffer(b"".join(packed for _, packed in blocks), dtype=np.uint8).reshape(-1, 16)
        hours = np.repeat([hour for hour, _ in blocks], [len(packed) // 16 for _, packed in blocks])
        if len(digests):
            self._insert(digests, self._codes(hours))

    def _make_room(self, ids: int) -> None:
        while self._recent and sum(run.nbytes for run in self._recent) > self._memory_bytes:
            self._spill_largest()
        if self._rewrite is None:
            self._begin_rewrite()
        if self._rewrite is not None:
            self._advance(self._rewrite, ids * _REWRITE_RATE)

    def _spill_largest(self) -> None:
        if self._spill is None:
            raise SpillFull(
                f"{len(self)} event ids take more than the {self._memory_bytes} bytes allowed; "
                "set a spill folder or raise the memory limit of the dedup index, then start again"
            )
        by_size = sorted(self._recent, key=len, reverse=True)
        group, over = [by_size[0]], sum(run.nbytes for run in by_size[1:]) - self._memory_bytes // 2
        for run in by_size[1:]:
            if over <= 0 or sum(map(len, group)) >= _FULL_RUN_IDS:
                break
            group.append(run)
            over -= run.nbytes
        rewrite, spilled = Rewrite(self._spill, group, self._floor()), None
        while spilled is None:
            spilled = rewrite.step(1 << 16)
        self._spilled.append(spilled)
        self._recent = _without(self._recent, group)

    def _begin_rewrite(self) -> None:
        floor = self._floor()
        group = _like_sized(self._spilled, None) or [r for r in self._spilled if r.live(floor) * 2 < len(r)][:1]
        if group and self._spill is not None:
            self._rewrite = Rewrite(self._spill, group, floor)

    def _advance(self, rewrite: Rewrite, ids: int) -> None:
        try:
            merged = rewrite.step(ids)
        except BaseException:
            self._rewrite = None
            raise
        if merged is not None:
            self._rewrite = None
            self._spilled.append(merged)
            self._replace_spilled(rewrite.sources)
            # The ids it began with may all have expired since.
            self._drop_expired()

    def _replace_spilled(self, gone: Sequence[Run]) -> None:
        for run in self._spilled:
            if self._spill is not None and run in gone:
                self._spill.remove(run.file)
        self._spilled = _without(self._spilled, gone)

    def _drop_expired(self) -> None:
        floor = self._floor()
        kept = [(run, run.live(floor)) for run in self._recent]
        # An eighth of dead ids keeps 20.5 bytes an id under 24.
        self._recent = [run if live * 8 >= len(run) * 7 else merge([run], floor) for run, live in kept if live]
        busy = self._rewrite.sources if self._rewrite is not None else []
        self._replace_spilled([run for run in self._spilled if not run.live(floor) and run not in busy])
        if not self._runs():
            self._base = None
            self._new.clear()

    def _codes(self, hours: npt.NDArray[np.int64]) -> U16:
        """Hours as 16-bit offsets from a base, which the first id held sets."""
        if self._floor_hour is not None:
            hours = np.maximum(hours, self._floor_hour)
        if self._base is None or not self._runs():
            self._base = int(hours[0]) - _MAX_CODE // 2
        codes = hours - self._base
        if int(codes.min()) < 0 or int(codes.max()) > _MAX_CODE:
            raise ValueError(
                f"expiry hours {int(hours.min())} to {int(hours.max())} are years away from {self._base + _MAX_CODE // 2}, "
                "the first one held: check the timestamps and the dedup horizon"
            )
        return codes.astype(np.uint16)

    def _hour(self, code: int) -> int:
        assert self._base is not None, "a code exists only once an id has set the base"
        return code + self._base

    def _floor(self) -> int:
        """The code of the earliest hour still held."""
        if self._floor_hour is None or self._base is None:
            return 0
        return min(max(self._floor_hour - self._base, 0), _MAX_CODE + 1)


def _like_sized(runs: Sequence[_R], most_ids: int | None) -> list[_R]:
    """The smallest runs up to and with `_FAN_IN` of like size, or none; no run above half of `most_ids`."""
    by_size = sorted((run for run in runs if most_ids is None or len(run) * 2 <= most_ids), key=len)
    for stop in range(_FAN_IN, len(by_size) + 1):
        if len(by_size[stop - 1]) <= _FAN_IN * len(by_size[stop - _FAN_IN]):
            return by_size[:stop]
    return []


def _without(runs: Sequence[_R], gone: Sequence[Run]) -> list[_R]:
    return [run for run in runs if run not in gone]
