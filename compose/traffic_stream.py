"""The traffic stream as the settings have it: its rules, and the memory of its event ids."""

from __future__ import annotations

from compose.settings import Settings
from streams.runtime.worker import StreamSpec
from streams.traffic.agent import TrafficOptions, traffic_stream
from streams.traffic.spill import SpillFolder

_MB = 1 << 20


def traffic(settings: Settings) -> StreamSpec:
    """The traffic stream as the settings have it."""
    rules = {
        "lateness_h": settings.traffic_lateness_h,
        "dedup_h": settings.traffic_dedup_h,
        "early_h": settings.traffic_early_h,
        "templates": settings.traffic_templates,
        "paths_max": settings.traffic_paths_max,
        "dimensions": settings.dimensions,
    }
    return traffic_stream(
        TrafficOptions(
            partitions=settings.partitions,
            retention_h=settings.traffic_retention_h,
            deadletter_retention_h=settings.deadletter_retention_h,
            max_record_bytes=settings.max_record_bytes,
            rules=rules,
            dedup_bytes=settings.dedup_memory_mb * _MB,
            spill=SpillFolder(settings.data_dir / "spill"),
        )
    )
