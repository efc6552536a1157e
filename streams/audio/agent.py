"""The audio stream's shell: binds the topic to the fold, and the fold to the object store."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from streams.audio import core
from streams.audio.fold import AudioFold
from streams.audio.held import Budget
from streams.audio.logreader import LogReader
from streams.audio.outside import AudioOutside, AudioStore, OutsideLimits, World
from streams.audio.routes import AudioRoutes
from streams.audio.rules import AudioRules
from streams.runtime.outside import Seat
from streams.runtime.worker import StreamSpec
from topics import specs


@dataclass(frozen=True, kw_only=True)
class AudioOptions:
    """Settings of the stream. `memory_bytes` is the worker's memory for audio."""

    partitions: int
    retention_h: int
    events_retention_h: int
    deadletter_retention_h: int
    chunk_bytes_max: int
    rules: dict[str, Any]
    memory_bytes: int
    store: AudioStore
    outside: OutsideLimits
    client_settings: dict[str, Any]


def audio_stream(options: AudioOptions) -> StreamSpec:
    """The audio stream for a worker to run."""
    size, partitions = options.chunk_bytes_max, options.partitions
    budget = Budget(options.memory_bytes)
    world = World(options.store, LogReader(specs.AUDIO_CHUNKS, options.client_settings, size), options.outside)
    folds: dict[int, AudioFold] = {}

    def make_fold(partition: int, of: int) -> AudioFold:
        rules = AudioRules(partition=partition, partitions=of, chunk_bytes_max=size, **options.rules)
        # What the fold of an earlier seat held leaves the budget.
        if partition in folds:
            folds[partition].shelf.close()
        folds[partition] = AudioFold(rules, budget)
        return folds[partition]

    def make_outside(seat: Seat, fold: AudioFold) -> AudioOutside:
        return AudioOutside(seat, world, fold.shelf, lambda effect: core.wanted(fold.state, effect), specs.AUDIO_CHUNKS)

    return StreamSpec(
        stream="audio",
        source=specs.AUDIO_CHUNKS,
        deadletter=specs.AUDIO_DEADLETTER,
        topics=(
            specs.source(specs.AUDIO_CHUNKS, partitions, options.retention_h, size),
            specs.outcomes(specs.AUDIO_SEGMENTS, partitions, options.events_retention_h),
            specs.deadletter(specs.AUDIO_DEADLETTER, partitions, options.deadletter_retention_h, size),
        ),
        make_fold=make_fold,
        make_outside=make_outside,
        routes=lambda worker: AudioRoutes(worker).all(),
    )
