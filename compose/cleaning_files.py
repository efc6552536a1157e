"""Sweeps what conversions and clients' uploads have left in the bucket: finds what nobody needs, and removes it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterable

from compose.cleaning import Leftover, Swept
from sinks.clickhouse.queries import file_job_states
from sinks.clickhouse.sink import ClickHouseSink
from sinks.objects import Bucket, ObjectInfo
from streams.files.leftovers import JobFacts, Verdict, judge_object, judge_upload, submitted_ms_of
from topics.files import Status
from topics.files_keys import CONVERTED, UPLOADS

#: Objects whose jobs one question to ClickHouse names.
_ASKED_AT_ONCE = 500


class FilesCleaner:
    """Sweeps once, into `swept`. What is younger than `older_than_s`, by the store's own clock, is not looked at, nor is an
    upload of a client whose URLs still work: `url_s`. With `dry_run` nothing is changed."""

    def __init__(
        self,
        bucket: Bucket,
        sink: ClickHouseSink,
        swept: Swept,
        *,
        older_than_s: float,
        dry_run: bool,
        url_s: float,
        progress: Callable[[Swept], None] = lambda swept: None,
    ) -> None:
        self._bucket = bucket
        self._sink = sink
        self._swept = swept
        self._older_than_s = older_than_s
        self._dry_run = dry_run
        self._url_s = url_s
        self._progress = progress

    async def run(self) -> Swept:
        """Sweep uploads, then objects. Raises SinkUnavailable when ClickHouse does not answer: then nothing more goes."""
        for prefix in (CONVERTED, UPLOADS):
            await self._uploads(prefix)
        batch: list[ObjectInfo] = []
        async for info in self._old():
            batch.append(info)
            if len(batch) == _ASKED_AT_ONCE:
                await self._objects(batch)
                batch = []
        await self._objects(batch)
        return self._swept

    async def _uploads(self, prefix: str) -> None:
        least_s = max(self._older_than_s, self._url_s) if prefix == UPLOADS else self._older_than_s
        found = [upload async for upload in self._bucket.list_uploads(prefix) if upload.age_s >= least_s]
        jobs = await self._jobs(upload.key for upload in found)
        for upload in found:
            verdict = judge_upload(upload.key, jobs.get(submitted_ms_of(upload.key), ()))
            if self._swept.note(Leftover("upload", upload.key, 0, upload.age_s, verdict)) and not self._dry_run:
                await self._bucket.abort_upload(upload.key, upload.upload_id)
            self._progress(self._swept)

    async def _old(self) -> AsyncIterator[ObjectInfo]:
        async for info in self._bucket.list(CONVERTED):
            self._swept.looked_at += 1
            if info.age_s >= self._older_than_s:
                yield info

    async def _objects(self, found: list[ObjectInfo]) -> None:
        jobs = await self._jobs(info.key for info in found)
        for info in found:
            verdict = judge_object(info.key, jobs.get(submitted_ms_of(info.key), ()))
            if verdict is Verdict.RESULT:
                continue
            leftover = Leftover("object", info.key, info.size_bytes, info.age_s, verdict)
            if self._swept.note(leftover) and not self._dry_run:
                await self._bucket.delete(info.key)
        self._progress(self._swept)

    async def _jobs(self, keys: Iterable[str]) -> dict[int | None, list[JobFacts]]:
        """What is known of the jobs of these keys, by the time of their submits."""
        times = {submitted_ms for key in keys if (submitted_ms := submitted_ms_of(key)) is not None}
        jobs: dict[int | None, list[JobFacts]] = {}
        if times:
            for row in await file_job_states(self._sink, sorted(times)):
                jobs.setdefault(row.submitted_ms, []).append(JobFacts(Status(row.status), row.r2_key))
        return jobs
