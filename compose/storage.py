"""What rests in the object store, as one document: for the gateway, which keeps it for some seconds, and for status."""

from __future__ import annotations

import asyncio
import time
from datetime import UTC, datetime
from functools import partial
from typing import Any

import structlog
from prometheus_client import CollectorRegistry

from compose.figures import share
from compose.files_figures import files_section, own_section, share_line
from sinks.clickhouse.queries import audio_storage, audio_users, file_storage
from sinks.clickhouse.sink import ClickHouseSink
from sinks.errors import SinkRefused, SinkUnavailable
from streams.audio.figures import UPLOAD_SUCCESS_MIN
from streams.files.sizes import SIZE_CLASSES
from streams.web.context import StorageUnknown
from streams.web.metrics import StorageMetrics
from topics.audio_events import AUDIO_PREFIX
from topics.files_keys import CONVERTED, UPLOADS

log = structlog.get_logger(__name__)

#: How long an answer is given again, and how long one may take.
_KEPT_S, _ASK_S = 5.0, 10.0
#: How old the metrics become.
_REFRESH_S = 60.0
_KEPT_MAX = 64
_GB = 1e9


async def storage_document(sink: ClickHouseSink, price_per_gb_month: float, month: str | None, users: int) -> Any:
    """What `/api/storage/stats` answers, asked of ClickHouse now. Raises SinkUnavailable, SinkRefused."""
    now = datetime.now(UTC)
    start = datetime.strptime(month, "%Y-%m").replace(tzinfo=UTC) if month else now.replace(day=1)
    start = start.replace(hour=0, minute=0, second=0, microsecond=0)
    end = start.replace(year=start.year + start.month // 12, month=start.month % 12 + 1)
    audio = await audio_storage(sink)
    files = files_section(await file_storage(sink, UPLOADS, [least for _, least in SIZE_CLASSES]))
    found = await audio_users(sink, round(start.timestamp() * 1000), round(end.timestamp() * 1000), users)

    def cost(size: int) -> float:
        return round(size / _GB * price_per_gb_month, 9)

    stored, failed = audio.segments_stored + audio.recordings, audio.segments_failed + audio.recordings_failed
    prefixes = {
        # Each recording has a manifest beside it.
        AUDIO_PREFIX: {
            "objects": 2 * audio.recordings + audio.segments,
            "bytes": audio.recordings_bytes + audio.segments_bytes,
        },
        CONVERTED: files["conversions"],
        UPLOADS: files["uploads"],
    }
    size = sum(held["bytes"] for held in prefixes.values())
    return {
        "as_of_ms": round(now.timestamp() * 1000),
        "objects": sum(held["objects"] for held in prefixes.values()),
        "bytes": size,
        "cost_per_month": cost(size),
        "price_per_gb_month": price_per_gb_month,
        "prefixes": prefixes,
        "files": files,
        "audio": {
            "recordings": {"objects": audio.recordings, "bytes": audio.recordings_bytes},
            "segments": {"objects": audio.segments, "bytes": audio.segments_bytes},
            "uploads": {
                "stored": stored,
                "failed": failed,
                "attempts": audio.attempts,
                "success": share(stored, failed),
                "success_limit": UPLOAD_SUCCESS_MIN,
            },
            "month": {
                "month": f"{start:%Y-%m}",
                "users": found.users,
                "bytes": found.bytes,
                "cost_per_month": cost(found.bytes),
                "most": [
                    {
                        "user": user.user,
                        "sessions": user.sessions,
                        "duration_ms": user.duration_ms,
                        "bytes": user.bytes,
                        "cost_per_month": cost(user.bytes),
                    }
                    for user in found.most
                ],
            },
        },
    }


class StorageFigures:
    """Implements `streams.web.context.StorageStats` over ClickHouse: who asks the same as another hears the same answer."""

    def __init__(self, sink: ClickHouseSink, price_per_gb_month: float, registry: CollectorRegistry) -> None:
        self._sink = sink
        self._price = price_per_gb_month
        self._registry = registry
        self._since_ms = round(time.time() * 1000)
        self._metrics = StorageMetrics(registry)
        self._asked: dict[tuple[str | None, int], tuple[float, asyncio.Task[Any]]] = {}
        self._refreshing: asyncio.Task[None] | None = None

    async def of(self, month: str | None, users: int) -> Any:
        """See `StorageStats`."""
        key, now_s = (month, users), time.monotonic()
        since_s, asked = self._asked.get(key, (0.0, None))
        if asked is None or (asked.done() and now_s - since_s > _KEPT_S):
            asked = asyncio.create_task(self._document(month, users))
            asked.add_done_callback(partial(self._answered, key))
            self._asked.pop(key, None)
            self._asked[key] = (now_s, asked)
            while len(self._asked) > _KEPT_MAX:
                del self._asked[next(iter(self._asked))]
        try:
            async with asyncio.timeout(_ASK_S):
                # A question that nobody waits for any more goes on: the connection takes one at a time.
                return await asyncio.shield(asked)
        except TimeoutError:
            raise StorageUnknown(f"ClickHouse takes more than {_ASK_S:g} s to answer") from None
        except (SinkUnavailable, SinkRefused) as error:
            raise StorageUnknown(str(error)) from None

    async def _document(self, month: str | None, users: int) -> Any:
        found = await storage_document(self._sink, self._price, month, users)
        found["files"]["gateway"] = {"since_ms": self._since_ms, **own_section(self._registry)}
        return found

    def _answered(self, key: tuple[str | None, int], asked: asyncio.Task[Any]) -> None:
        if asked.cancelled():
            return
        if asked.exception() is not None:
            # The next one to ask tries again.
            if self._asked.get(key, (0.0, None))[1] is asked:
                del self._asked[key]
        elif key[0] is None:
            self._measure(asked.result())

    def start(self) -> None:
        """Begin to keep the metrics current."""
        self._refreshing = asyncio.create_task(self._refresh())

    async def close(self) -> None:
        """Stop asking."""
        for task in [self._refreshing, *(asked for _, asked in self._asked.values())]:
            if task is not None:
                task.cancel()
        await self._sink.close()

    async def _refresh(self) -> None:
        while True:
            try:
                await self.of(None, 0)
            except StorageUnknown as error:
                log.debug("storage_unknown", error=str(error))
            await asyncio.sleep(_REFRESH_S)

    def _measure(self, found: Any) -> None:
        metrics, month = self._metrics, found["audio"]["month"]
        for prefix, held in found["prefixes"].items():
            metrics.objects.labels(prefix).set(held["objects"])
            metrics.bytes.labels(prefix).set(held["bytes"])
        metrics.cost.set(found["cost_per_month"])
        metrics.users.set(month["users"])
        metrics.users_bytes.set(month["bytes"])
        metrics.users_cost.set(month["cost_per_month"])
        metrics.as_of.set(found["as_of_ms"] / 1000)


def storage_lines(found: dict[str, Any]) -> list[str]:
    """The document as text for status."""
    month, files = found["audio"]["month"], found["files"]
    price = f"at {found['price_per_gb_month']:g} per GB"
    held = "; ".join(
        f"{prefix} {of['objects']:,} objects, {_size(of['bytes'])}"
        for prefix, of in found["prefixes"].items()
        if of["objects"]
    )
    lines = [
        f"storage: {found['objects']:,} objects, {_size(found['bytes'])}, {found['cost_per_month']:,.4f} a month {price}"
        + (f" ({held})" if held else "")
    ]
    jobs, verified = files["jobs"], files["verifications"]
    if jobs["completed"] + jobs["failed"]:
        failures = ", ".join(f"{count:,} {error_type}" for error_type, count in files["failures"].items())
        lines.append(
            f"storage: of file jobs completed {share_line(jobs['completed'], jobs['failed'])}, of their results verified "
            + share_line(verified["passed"], verified["failed"])
            + (f"; failed: {failures}" if failures else "")
        )
    if month["users"]:
        each = month["bytes"] / month["users"]
        cost = month["cost_per_month"] / month["users"]
        lines.append(
            f"storage: {month['users']:,} users recorded {_size(month['bytes'])} in {month['month']}: {_size(each)} each on "
            f"average, {cost:,.4f} a month"
        )
    return lines


def _size(size: float) -> str:
    return f"{size / _GB:,.2f} GB" if size >= _GB else f"{size / 1e6:,.1f} MB"
