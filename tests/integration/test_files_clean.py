"""`sluiceway clean` on a real bucket and ClickHouse: of conversions it takes what lost or was given up, and no result."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from compose.cleaning import Swept
from compose.cleaning_files import FilesCleaner
from compose.commands.clean import sweep
from compose.local.stack import LocalStack
from sinks.objects import PART_BYTES_MIN, Bucket
from streams.files.job import Course, Job, Origin
from streams.files.rows import job_row, table
from tests.filesfold import submit
from tests.objectstores import ObjectStore, versitygw
from tests.warehouse import migrated
from topics.files import Status
from topics.files_keys import converted_key
from topics.rows import FILE_JOBS_ROWS

pytestmark = pytest.mark.stack

#: Status of each job, by its submit's time. Two share one.
JOBS = {
    "done": (100, Status.COMPLETED),
    "live": (200, Status.VERIFYING),
    "failed": (300, Status.FAILED),
    "pair-done": (400, Status.COMPLETED),
    "pair-live": (400, Status.ACCEPTED),
}
RESULTS = {name: converted_key(ms, name, 1, 2, "a.mp3") for name, (ms, _) in JOBS.items()}
LOSERS = {name: converted_key(ms, name, 1, 1, "a.mp3") for name, (ms, _) in JOBS.items()}
STRANGE = {converted_key(999, "nobody", 1, 1, "a.mp3"), "converted/notes.txt"}
CLIENTS = "uploads/1/a.webm"
GONE = {LOSERS["done"], LOSERS["failed"], RESULTS["failed"]}
ABORTED = {LOSERS["done"], LOSERS["failed"], CLIENTS}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory, versity: Path) -> Iterator[ObjectStore]:
    with versitygw(tmp_path_factory.mktemp("versitygw"), versity) as store:
        yield store


async def _fill(bucket: Bucket, sink: Any) -> None:
    rows = {}
    for name, (ms, status) in JOBS.items():
        course = Course(status=status, term=1, attempt=2, version=7)
        job = Job(Origin(b"{}", [], 0, 0, 0), submit(name, file_name="a.webm"), course)
        rows[name] = {**job_row(job, 0), "submitted_ms": ms}
        rows[name]["r2_key"] = RESULTS[name] if status is Status.COMPLETED else ""
        await bucket.put(LOSERS[name], b"lost")
        await bucket.put(RESULTS[name], b"won")
    await sink.insert(FILE_JOBS_ROWS, table(rows))
    for key in STRANGE:
        await bucket.put(key, b"?")
    for key in (LOSERS["done"], LOSERS["live"], LOSERS["failed"], CLIENTS):
        await (await bucket.upload(key, PART_BYTES_MIN)).part(1, bytes(PART_BYTES_MIN))


async def _sweep(stack: LocalStack, store: ObjectStore, **how: Any) -> tuple[set[str], set[str], Swept]:
    """Keys of objects and of uploads that are gone, and what the sweep says."""
    bucket = Bucket(store.address)

    async def there() -> tuple[set[str], set[str]]:
        return {info.key async for info in bucket.list()}, {upload.key async for upload in bucket.list_uploads()}

    try:
        async with migrated(stack.clickhouse.url) as sink:
            await bucket.abort_uploads("", -1.0)
            await _fill(bucket, sink)
            objects, uploads = await there()
            how = {"older_than_s": -1.0, "dry_run": False, "url_s": -1.0, **how}
            swept = await FilesCleaner(bucket, sink, Swept(), **how).run()
            left, open_ = await there()
            return objects - left, uploads - open_, swept
    finally:
        await bucket.close()


def test_what_lost_goes_and_no_result_does(stack: LocalStack, store: ObjectStore) -> None:
    objects, uploads, swept = asyncio.run(_sweep(stack, store))
    assert (objects, uploads) == (GONE, ABORTED)
    assert sum(swept.kept.values()) == len(STRANGE) + 5 + 1


@pytest.mark.parametrize("how", [{"dry_run": True}, {"older_than_s": 3_600.0}])
def test_nothing_goes_that_is_young_or_only_asked_for(
    stack: LocalStack, store: ObjectStore, how: dict[str, Any]
) -> None:
    objects, uploads, swept = asyncio.run(_sweep(stack, store, **how))
    assert (objects, uploads) == (set(), set())
    assert len(swept.leftovers) == (len(GONE | ABORTED) + 2 if "dry_run" in how else 0)


def test_a_clients_urls_work_as_long_as_the_settings_say(stack: LocalStack, store: ObjectStore) -> None:
    async def given_up() -> None:
        at = store.address
        bucket = Bucket(at)
        where = {"s3_endpoint": at.endpoint, "s3_bucket": at.bucket, "upload_url_s": 1}
        try:
            async with migrated(stack.clickhouse.url) as sink:
                await (await bucket.upload(CLIENTS, PART_BYTES_MIN)).part(1, bytes(PART_BYTES_MIN))
                settings = stack.settings(**where, clickhouse_database=sink.database)
                found: set[str] = set()
                async with asyncio.timeout(20):
                    while CLIENTS not in found:
                        found = {left.key for left in (await sweep(settings, 0.0, True, print)).leftovers}
        finally:
            await bucket.close()

    asyncio.run(given_up())


def test_a_clients_upload_stays_while_its_urls_work(stack: LocalStack, store: ObjectStore) -> None:
    _, uploads, _ = asyncio.run(_sweep(stack, store, url_s=3_600.0))
    assert uploads == ABORTED - {CLIENTS}
