"""`/api/storage/stats` over a real ClickHouse: what it counts, what it costs to ask, and what it says without an answer."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import jsonschema
import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer
from prometheus_client import CollectorRegistry

from compose.figures import total
from compose.local.process import free_port
from compose.local.stack import LocalStack
from compose.storage import StorageFigures, storage_document, storage_lines
from sinks.clickhouse.sink import ClickHouseSink
from streams.web.context import Readiness
from streams.web.gateway import make_gateway
from streams.web.metrics import FileMetrics
from tests.rows import DAY_START_MS, audio_segment, audio_session, file_job
from tests.unit.test_gateway import KeptRecords
from tests.warehouse import migrated, new_database, new_sink
from topics.rows import AUDIO_SEGMENTS_ROWS, AUDIO_SESSIONS_ROWS, FILE_JOBS_ROWS, version_of

pytestmark = pytest.mark.stack

PRICE = 0.015
#: The first millisecond of November 2026, UTC.
NOVEMBER_MS = 1_793_491_200_000
Client = TestClient[web.Request, web.Application]


@pytest.fixture
async def sink(stack: LocalStack) -> AsyncIterator[ClickHouseSink]:
    async with migrated(stack.clickhouse.url) as sink:
        yield sink


async def fill(sink: ClickHouseSink) -> None:
    """Two users' recordings on both sides of a month's beginning, a session that is open, and one that failed."""

    async def session(name: str, at: int = 1, **columns: Any) -> None:
        row = audio_session(session_id=name, version=version_of(1, at), opened_ms=NOVEMBER_MS, **columns)
        await sink.insert(AUDIO_SESSIONS_ROWS, row)

    async def segment(name: str, first: int, at: int = 1, **columns: Any) -> None:
        row = audio_segment(session_id=name, first_seq=first, last_seq=first, version=version_of(1, at), **columns)
        await sink.insert(AUDIO_SEGMENTS_ROWS, row)

    made = {"status": "closed", "recording": "audio/x/recording.flac"}
    await session("a1")
    await session("a1", 2, **made, recording_bytes=2_000_000_000, duration_ms=60_000)
    await session("a2", **made, recording_bytes=760_000_000, duration_ms=30_000)
    await session("b1", **made, user="bob", recording_bytes=240_000_000, duration_ms=9_000)
    await session("open", user="eve")
    await session("bad", status="closed", error="segments are missing", user="eve")
    await session("empty", status="closed", user="eve")
    before = audio_session(session_id="old", opened_ms=NOVEMBER_MS - 1, **made, recording_bytes=1_000)
    await sink.insert(AUDIO_SESSIONS_ROWS, before)
    for first in (0, 1):
        await segment("a1", first)
        await segment("a1", first, 2, status="removed")
    await segment("open", 0, size_bytes=1_000, attempts=3)
    await segment("open", 1, status="failed", size_bytes=0, attempts=20)


@asynccontextmanager
async def gateway(figures: StorageFigures, registry: CollectorRegistry) -> AsyncIterator[Client]:
    async def ready() -> Readiness:
        return Readiness(True)

    app = make_gateway(publisher=KeptRecords(), readiness=ready, registry=registry, version="1", storage=figures)
    async with TestClient(TestServer(app)) as client:
        yield client


async def test_the_stats_are_those_of_the_latest_states(sink: ClickHouseSink) -> None:
    await fill(sink)
    registry = CollectorRegistry()
    figures = StorageFigures(sink, PRICE, registry)
    async with gateway(figures, registry) as client:
        answer = await client.get("/api/storage/stats?month=2026-11&users=1")
        found = await answer.json()
        document = await (await client.get("/openapi.json")).json()
        schema = {"$ref": "#/components/schemas/StorageStats", "components": document["components"]}
        jsonschema.validate(found, schema)
        size = 3_000_001_000 + 1_000
        nothing = {"objects": 0, "bytes": 0}
        held = {"objects": found["objects"], "bytes": found["bytes"]}
        assert found["prefixes"] == {"audio/": held, "converted/": nothing, "uploads/": nothing}
        assert (found["objects"], found["bytes"]) == (2 * 4 + 1, size), "recordings, their manifests and a segment"
        assert found["cost_per_month"] == pytest.approx(size / 1e9 * PRICE)
        audio = found["audio"]
        assert audio["recordings"] == {"objects": 4, "bytes": 3_000_001_000}
        assert audio["segments"] == {"objects": 1, "bytes": 1_000}
        uploads = audio["uploads"]
        assert (uploads["stored"], uploads["failed"], uploads["attempts"]) == (3 + 4, 1 + 1, 1 + 1 + 3 + 20)
        assert (uploads["success"], uploads["success_limit"]) == (7 / 9, 0.999)
        month = audio["month"]
        assert (month["month"], month["users"], month["bytes"]) == ("2026-11", 2, 3_000_000_000)
        # The seed's example: 2.76 GB of a user cost 0.041 a month.
        ann = {"user": "ann", "sessions": 2, "duration_ms": 90_000, "bytes": 2_760_000_000, "cost_per_month": 0.0414}
        assert month["most"] == [ann]

        october = (await (await client.get("/api/storage/stats?month=2026-10")).json())["audio"]["month"]
        assert (october["users"], october["bytes"]) == (1, 1_000)
        # Metrics are of this month; who asks for another changes nothing.
        assert "sluiceway_storage_bytes{" not in await (await client.get("/metrics")).text()
        await client.get("/api/storage/stats")
        metrics = await (await client.get("/metrics")).text()
        assert total(metrics, "sluiceway_storage_bytes") == size
        assert total(metrics, "sluiceway_storage_as_of_seconds") == pytest.approx(time.time(), abs=60)
    told = storage_lines(found)
    assert told == [
        "storage: 9 objects, 3.00 GB, 0.0450 a month at 0.015 per GB (audio/ 9 objects, 3.00 GB)",
        "storage: 2 users recorded 3.00 GB in 2026-11: 1.50 GB each on average, 0.0225 a month",
    ]


async def convert(sink: ClickHouseSink) -> None:
    """Jobs of each kind of end, some of them of one upload, and earlier states of theirs."""

    async def job(name: str, at: int = 1, **columns: Any) -> None:
        await sink.insert(FILE_JOBS_ROWS, file_job(job_id=name, version=version_of(1, at), **columns))

    def completed(size: int, convert_ms: int) -> dict[str, Any]:
        times = {
            "prepare_ms": 20,
            "convert_ms": convert_ms,
            "verify_ms": 30,
            "finished_ms": DAY_START_MS + 10 + 2 * convert_ms,
        }
        return {
            "status": "completed",
            "r2_key": "converted/1_a_clip.mp3",
            "checksum": "0" * 32,
            "size_bytes": size,
            **times,
        }

    clip = {"source_key": "uploads/1/clip.webm", "source_bytes": 5_000_000}
    await job("small", status="verifying", **clip, size_bytes=3_000_000, checksum="0" * 32)
    await job("small", 2, **clip, **completed(3_000_000, 1_000))
    await job("small-too", **clip, **completed((10 << 20) - 1, 3_000))
    await job("large", source_key="audio/a1/recording.flac", source_bytes=900_000_000, **completed(100 << 20, 60_000))
    over = {"finished_ms": DAY_START_MS + 500, "status": "failed"}
    other = {"source_key": "uploads/2/other.webm", "source_bytes": 7_000_000}
    await job("refused", **over, **other, error_type="not_verified", size_bytes=9, checksum="0" * 32)
    for name in ("bad", "bad-too"):
        await job(name, **over, **other, error_type="not_media")
    await job("missing", **over, source_key="uploads/3/never.webm", error_type="source_missing")
    await job("given-up", **{**over, "status": "cancelled"}, **other, size_bytes=9, checksum="0" * 32)
    await job("waits")


async def test_of_files_it_tells_what_is_stored_how_jobs_fare_and_what_this_gateway_signed(
    sink: ClickHouseSink,
) -> None:
    await convert(sink)
    registry = CollectorRegistry()
    figures, counted = StorageFigures(sink, PRICE, registry), FileMetrics(registry)
    counted.presigns.labels("signed").inc(3)
    counted.presigns.labels("failed").inc()
    for outcome in ("begun", "begun", "stored", "missing"):
        counted.uploads.labels(outcome).inc()
    async with gateway(figures, registry) as client:
        found = await (await client.get("/api/storage/stats")).json()
        document = await (await client.get("/openapi.json")).json()
        metrics = await (await client.get("/metrics")).text()
    jsonschema.validate(found, {"$ref": "#/components/schemas/StorageStats", "components": document["components"]})
    size = 3_000_000 + (10 << 20) - 1 + (100 << 20)
    converted, uploads = {"objects": 3, "bytes": size}, {"objects": 2, "bytes": 12_000_000}
    assert found["prefixes"] == {"audio/": {"objects": 0, "bytes": 0}, "converted/": converted, "uploads/": uploads}
    assert (found["objects"], found["bytes"]) == (5, size + 12_000_000)
    assert 'sluiceway_storage_objects{prefix="converted/"} 3.0' in metrics
    assert 'sluiceway_storage_bytes{prefix="uploads/"} 1.2e+07' in metrics

    files = found["files"]
    assert (files["conversions"], files["uploads"]) == (converted, uploads)
    ended = {"completed": 3, "failed": 4, "cancelled": 1, "success": 3 / 7}
    assert files["jobs"] == {"accepted": 1, "prepared": 0, "converting": 0, "verifying": 0, **ended}
    assert files["verifications"] == {"passed": 3, "failed": 1, "success": 3 / 4}
    assert files["failures"] == {"not_media": 2, "not_verified": 1, "source_missing": 1}
    means = {"prepare_ms": 20, "verify_ms": 30}
    assert files["times"] == {
        "under_10mb": {"results": 2, **means, "convert_ms": 2_000, "took_ms": 4_000},
        "under_100mb": {"results": 0, "prepare_ms": None, "convert_ms": None, "verify_ms": None, "took_ms": None},
        "over_100mb": {"results": 1, **means, "convert_ms": 60_000, "took_ms": 120_000},
    }
    assert abs(files["gateway"].pop("since_ms") / 1000 - time.time()) < 60
    assert files["gateway"] == {
        "presigns": {"signed": 3, "failed": 1, "success": 3 / 4},
        "direct_uploads": {"begun": 2, "stored": 1, "missing": 1, "mismatch": 0, "success": 1 / 2},
    }
    assert storage_lines(found) == [
        "storage: 5 objects, 130.3 MB, 0.0020 a month at 0.015 per GB "
        "(converted/ 3 objects, 118.3 MB; uploads/ 2 objects, 12.0 MB)",
        "storage: of file jobs completed 42.8% of 7, of their results verified 75.0% of 4; "
        "failed: 2 not_media, 1 not_verified, 1 source_missing",
    ]


async def test_an_empty_database_is_no_error(sink: ClickHouseSink) -> None:
    found = await storage_document(sink, PRICE, None, 10)
    assert (found["objects"], found["audio"]["uploads"]["success"]) == (0, None)
    files = found["files"]
    assert (files["jobs"]["success"], files["verifications"]["success"], files["failures"]) == (None, None, {})
    assert all(of["results"] == 0 and of["took_ms"] is None for of in files["times"].values())
    assert found["audio"]["month"]["most"] == []
    assert len(storage_lines(found)) == 1


async def test_many_who_ask_at_once_are_one_question(sink: ClickHouseSink) -> None:
    figures = StorageFigures(sink, PRICE, CollectorRegistry())
    answers = await asyncio.gather(*(figures.of(None, 5) for _ in range(100)), figures.of("2026-11", 5))
    assert all(answer is answers[0] for answer in answers[:100])
    assert answers[100]["audio"]["month"]["month"] == "2026-11"
    assert await figures.of(None, 5) is answers[0], "for some seconds it is the same answer"


@pytest.mark.parametrize("query", ["month=2026-13", "month=2026", "month=%27", "users=-1", "users=1001", "users=x"])
async def test_what_cannot_be_asked_is_said(query: str, sink: ClickHouseSink) -> None:
    registry = CollectorRegistry()
    async with gateway(StorageFigures(sink, PRICE, registry), registry) as client:
        answer = await client.get(f"/api/storage/stats?{query}")
        assert (answer.status, answer.content_type) == (400, "application/problem+json")


async def test_without_clickhouse_it_says_so(stack: LocalStack) -> None:
    registry = CollectorRegistry()
    away = new_sink(f"http://127.0.0.1:{free_port()}", "sluiceway")
    bare = new_sink(stack.clickhouse.url, new_database())
    for sink in (away, bare):
        figures = StorageFigures(sink, PRICE, registry)
        async with gateway(figures, registry) as client:
            for _ in range(2):
                answer = await client.get("/api/storage/stats")
                problem = await answer.json()
                assert (answer.status, problem["type"]) == (503, "urn:sluiceway:problem:storage-unknown")
                assert answer.headers["Retry-After"] and "ClickHouse" in problem["detail"]
        await figures.close()
        registry = CollectorRegistry()
