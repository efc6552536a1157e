"""The file stream's shell: what the runtime's agent is to fold, by which rules, and what it asks of the world."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from streams.files.fold import FilesFold
from streams.files.outside import FilesOutside, World
from streams.files.routes import FilesRoutes
from streams.files.rules import FilesRules
from streams.runtime.worker import StreamSpec
from topics import specs


@dataclass(frozen=True, kw_only=True)
class FilesOptions:
    """Settings of the stream. `rules` are those of `FilesRules` that no partition has its own of; `close` is called when the
    worker ends."""

    partitions: int
    retention_h: int
    events_retention_h: int
    deadletter_retention_h: int
    record_bytes_max: int
    rules: dict[str, Any]
    world: World
    close: Callable[[], None]


def files_stream(options: FilesOptions) -> StreamSpec:
    """The file stream for a worker to run."""
    size, partitions = options.record_bytes_max, options.partitions

    def make_fold(partition: int, of: int) -> FilesFold:
        return FilesFold(FilesRules(partition=partition, partitions=of, record_bytes_max=size, **options.rules))

    return StreamSpec(
        stream="files",
        source=specs.FILES_JOBS,
        deadletter=specs.FILES_DEADLETTER,
        topics=(
            specs.source(specs.FILES_JOBS, partitions, options.retention_h, size),
            specs.outcomes(specs.FILES_PROGRESS, partitions, options.events_retention_h),
            specs.deadletter(specs.FILES_DEADLETTER, partitions, options.deadletter_retention_h, size),
        ),
        make_fold=make_fold,
        make_outside=lambda seat, fold: FilesOutside(seat, options.world, fold),
        routes=lambda worker: FilesRoutes(worker).all(),
        close=options.close,
    )
