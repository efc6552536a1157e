"""What this process uses over a stretch of time: its CPU, its memory, and the bytes of request bodies that it takes in."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from contextlib import contextmanager

import psutil
from prometheus_client import CollectorRegistry

from streams.web.metrics import REQUEST_BYTES

_SAMPLE_S = 0.05


class Usage:
    """Figures of the whole process since `measured` began, whatever else it did meanwhile among them."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._registry = registry
        self._process = psutil.Process()
        self._started, self._cpu_s = time.perf_counter(), time.process_time()
        self._bytes = self._request_bytes()
        self._memory = self._peak = self._rss()

    def read(self) -> dict[str, float | int]:
        """Seconds, CPU seconds of all threads, resident bytes at the start and at most, bytes of requests that have ended."""
        self.sample()
        return {
            "seconds": round(time.perf_counter() - self._started, 3),
            "cpu_seconds": round(time.process_time() - self._cpu_s, 3),
            "memory_start_bytes": self._memory,
            "memory_peak_bytes": self._peak,
            "request_bytes": self._request_bytes() - self._bytes,
        }

    def sample(self) -> None:
        """Look at the memory now."""
        self._peak = max(self._peak, self._rss())

    def _rss(self) -> int:
        return int(self._process.memory_info().rss)

    def _request_bytes(self) -> int:
        return int(self._registry.get_sample_value(f"{REQUEST_BYTES}_total") or 0)


@contextmanager
def measured(registry: CollectorRegistry) -> Iterator[Usage]:
    """Measure while the context is open; the memory's peak is of samples 50 ms apart. Made inside a running event loop."""
    usage = Usage(registry)
    sampling = asyncio.create_task(_sample(usage))
    try:
        yield usage
    finally:
        sampling.cancel()


async def _sample(usage: Usage) -> None:
    while True:
        await asyncio.sleep(_SAMPLE_S)
        usage.sample()
