"""Spill files: scratch that no process leaves behind, and a full disk that stops before anything is lost."""

from __future__ import annotations

import itertools
import multiprocessing
import os
import resource
import signal
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import pytest

from streams.traffic import spill
from streams.traffic.dedup import DedupIndex
from streams.traffic.runs import Columns, run_of
from streams.traffic.spill import Rewrite, SpillFolder, SpillFull

_SPAWN = multiprocessing.get_context("spawn")


def columns(ids: int, *, seed: int = 0) -> Columns:
    random = np.random.default_rng(seed)
    hi, lo = np.sort(random.integers(0, 2**64, ids, dtype=np.uint64)), random.integers(0, 2**64, ids, dtype=np.uint64)
    return Columns(hi, lo, random.integers(0, 50, ids).astype(np.uint16))


def hashes(seed: int, count: int) -> np.ndarray[tuple[int, int], np.dtype[np.uint8]]:
    return np.random.default_rng(seed).integers(0, 256, (count, 16), dtype=np.uint8)


@pytest.mark.parametrize("step", [1, 700, 1 << 20])
def test_a_rewrite_merges_in_any_steps_and_drops_the_expired(tmp_path: Path, step: int) -> None:
    folder = SpillFolder(tmp_path)
    parts = [columns(ids, seed=ids) for ids in (40, 700, 1_500)]
    rewrite = Rewrite(folder, [run_of(part) for part in parts], floor=10)
    while (run := rewrite.step(step)) is None:
        pass
    expected = sorted(row for part in parts for row in zip(*map(np.ndarray.tolist, part), strict=True) if row[2] >= 10)
    assert list(zip(*map(np.ndarray.tolist, run.columns), strict=True)) == expected
    assert list(zip(*map(np.ndarray.tolist, run.slice(0, len(run))), strict=True)) == expected
    assert run.counts == {code: sum(row[2] == code for row in expected) for code in {row[2] for row in expected}}
    hi = run.columns.hi
    probes = np.sort(
        np.concatenate([hi, hi + np.uint64(1), hi - np.uint64(1), np.array([0, 2**64 - 1], dtype=np.uint64)])
    )
    assert run.lower_bound(probes).tolist() == np.searchsorted(hi, probes).tolist()
    folder.close()
    assert not list(tmp_path.iterdir())


def _hold_a_file(path: Path, up: Connection) -> None:
    index = DedupIndex(memory_bytes=0, spill=SpillFolder(path))
    index.add(hashes(1, 100), np.full(100, 5))
    index.add(hashes(2, 100), np.full(100, 5))
    up.send(sorted(file.name for file in path.iterdir()))
    signal.pause()


def test_files_of_the_living_stay_and_those_of_the_dead_go(tmp_path: Path) -> None:
    ours, theirs = _SPAWN.Pipe()
    child = _SPAWN.Process(target=_hold_a_file, args=(tmp_path, theirs), daemon=True)
    child.start()
    assert ours.poll(30)
    names = ours.recv()
    assert len(names) == 1
    assert f"-{child.pid}-" in names[0]
    SpillFolder(tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == names
    child.kill()
    child.join(30)
    SpillFolder(tmp_path)
    assert not list(tmp_path.iterdir())


def test_two_folders_of_one_process_share_a_path(tmp_path: Path) -> None:
    first = SpillFolder(tmp_path)
    index = DedupIndex(memory_bytes=0, spill=first)
    index.add(hashes(1, 100), np.full(100, 5))
    index.add(hashes(2, 100), np.full(100, 5))
    second = SpillFolder(tmp_path)
    other = DedupIndex(memory_bytes=0, spill=second)
    for seed in (1, 2):
        assert other.add(hashes(seed, 100), np.full(100, 5)).all()
    assert len(list(tmp_path.iterdir())) == 2
    second.close()
    assert not index.add(hashes(1, 100), np.full(100, 5)).any()
    first.close()
    assert not list(tmp_path.iterdir())


def _fill(path: Path, up: Connection) -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
    index = DedupIndex(memory_bytes=50_000, spill=SpillFolder(path))
    seed = 0
    try:
        for seed in range(100):
            index.add(hashes(seed, 1_000), np.full(1_000, 5 + seed))
    except SpillFull as full:
        left = sum(file.stat().st_size for file in path.iterdir())
        again = ""
        try:
            index.add(hashes(seed, 1_000), np.full(1_000, 5))
        except SpillFull as twice:
            again = str(twice)
        up.send((str(full), again, seed, len(index), index.bytes_spilled - left))


def test_a_full_disk_stops_ingest_before_the_batch_is_applied(tmp_path: Path) -> None:
    ours, theirs = _SPAWN.Pipe()
    child = _SPAWN.Process(target=_fill, args=(tmp_path, theirs), daemon=True)
    child.start()
    assert ours.poll(30)
    first, again, seed, held, leftover = ours.recv()
    child.join(30)
    assert "cannot spill" in first
    assert os.strerror(27) in first
    assert "free disk space" in again
    assert 3 < seed < 99
    assert held == seed * 1_000
    assert leftover == 0


def test_files_go_when_their_ids_have_expired(tmp_path: Path) -> None:
    folder = SpillFolder(tmp_path)
    index = DedupIndex(memory_bytes=0, spill=folder)
    for seed in range(3):
        index.add(hashes(seed, 1_000), np.full(1_000, 5))
    assert index.bytes_spilled == folder.nbytes == sum(file.stat().st_size for file in tmp_path.iterdir()) > 0
    assert index.expire(6) == [5]
    assert index.bytes_spilled == 0
    assert not list(tmp_path.iterdir())
    folder.close()


def test_a_file_name_that_another_container_took_is_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = SpillFolder(tmp_path), SpillFolder(tmp_path)
    kept = first.create(10)
    # As a process of the same id would, which counts from the same number.
    monkeypatch.setattr(spill, "_NUMBERS", itertools.count(int(kept._path.stem.rpartition("-")[2])))
    file = second.create(10)
    assert file._path != kept._path
    second.close()
    assert list(tmp_path.iterdir()) == [kept._path]
    first.close()
