"""The demo's conversions: a clip goes up and comes back in other formats over HTTP, its worker and the converters are killed
in the midst of that, and what the gateway, Kafka, ClickHouse and the bucket have of it is compared with the clip."""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from aiohttp import ClientError, ClientSession
from yarl import URL

from compose.clients import bucket
from compose.demo.client import Event, Refused, client, followed, json_of, posted
from compose.demo.clip import Media, clip_file, media_of
from compose.demo.files_truth import FoundFiles, Result, file_differences
from compose.ffmpeg import FfmpegFailed
from compose.kafka import kafka_access
from compose.settings import Settings
from sinks.clickhouse.sink import ClickHouseSink
from streams.runtime.changelog import read_changelog
from topics import specs
from topics.files import Stage, Status
from topics.files_events import FINAL_EVENTS, decode_event
from topics.files_keys import CONVERTED

#: The worker is killed as soon as ffmpeg is told to be at work.
SETTINGS: dict[str, Any] = {"files_progress_s": 0.2}
FORMATS = ("mp4", "mp3")
SUBMIT_WITHIN_S = 20.0
CONVERT_WITHIN_S = 90.0
SETTLE_S = 30.0
USER = "demo"

_PAST_FETCHING = (Stage.CONVERTING, Stage.UPLOADING, Status.VERIFYING, Status.COMPLETED)
_COLUMNS = ("job_id", "status", "r2_key", "size_bytes", "checksum", "duration_ms", "attempts", "lost_attempts")

Say = Callable[[str], None]
#: Ends the worker and what works for it, if a program of these words is among that: what was ended, and nothing otherwise.
Kill = Callable[[str], str]


@dataclass
class FilesOutcome:
    """What the demo saw, and what was wrong. `jobs` has formats by the ids of their jobs."""

    source: Media | None = None
    source_bytes: int = 0
    jobs: dict[str, str] = field(default_factory=dict)
    found: FoundFiles = field(default_factory=FoundFiles)
    problems: list[str] = field(default_factory=list)


async def run_files(
    settings: Settings, url: str, sink: ClickHouseSink, folder: Path, kill: Kill, say: Say
) -> FilesOutcome:
    """Upload the clip at the gateway of this URL, have it converted, wait until ClickHouse has the ends, compare."""
    outcome = FilesOutcome()
    async with client(url) as http:
        try:
            clip = await clip_file(folder)
            outcome.source, outcome.source_bytes = await media_of(clip), clip.stat().st_size
            async with asyncio.timeout(SUBMIT_WITHIN_S):
                say(f"uploading {clip.name} ({outcome.source_bytes / 1e6:.1f} MB) by a presigned URL")
                key = await _uploaded(http, clip)
                for format in FORMATS:
                    outcome.jobs[await _submitted(http, key, clip.name, format)] = format
            say(f"converting it to {' and '.join(FORMATS)}")
            async with asyncio.timeout(CONVERT_WITHIN_S):
                watch = Watch(outcome.jobs, kill, say)
                await asyncio.gather(*(_watched(http, job_id, watch) for job_id in outcome.jobs))
            if not watch.killed:
                outcome.problems.append("files: ffmpeg was never met at work, and so the worker was not killed")
            say("downloading the results by their links")
            outcome.found = await _found(http, settings, sink, folder, outcome.jobs)
            problems = file_differences(outcome.jobs, outcome.source, outcome.found)
            outcome.problems += [f"files: {problem}" for problem in problems]
        except (ClientError, FfmpegFailed, Refused) as error:
            outcome.problems.append(f"files: {error}")
        except TimeoutError:
            outcome.problems.append("files: the gateway did not take the jobs, or did not tell their ends, in time")
    return outcome


# -- a client's part ---------------------------------------------------------------------------------------------


async def _uploaded(http: ClientSession, clip: Path) -> str:
    """Its key in the bucket."""
    data = await asyncio.to_thread(clip.read_bytes)
    wanted = {"file_name": clip.name, "content_type": "video/webm", "size_bytes": len(data)}
    upload = await posted(http, "/api/uploads", wanted)
    async with http.put(URL(upload["upload_url"], encoded=True), data=data, headers=upload["headers"]) as answer:
        if answer.status != 200:
            raise Refused(f"the store answered the upload with {answer.status}: {await answer.text()}")
    stored = await posted(http, "/api/uploads/complete", {"key": upload["key"]})
    return str(stored["key"])


async def _submitted(http: ClientSession, key: str, file_name: str, format: str) -> str:
    """The id of a job."""
    body = {"source": {"key": key}, "format": format, "user": USER, "file_name": file_name}
    told = await posted(http, "/api/convert", body, {"Idempotency-Key": f"demo-{format}"})
    return str(told["job_id"])


class Watch:
    """Has the worker killed once each job is past the fetching of its source, and ffmpeg is at work for one of them."""

    def __init__(self, jobs: Mapping[str, str], kill: Kill, say: Say) -> None:
        self._jobs = jobs
        self._kill = kill
        self._say = say
        self._at: dict[str, str] = {}
        self.killed = False

    def tell(self, job_id: str, event: Event) -> None:
        """Something happened to a job."""
        format = self._jobs[job_id]
        if event.data.get("error_type") == "lost":
            self._say(f"{format}: the attempt was lost with its worker, another begins")
        elif event.name in ("result", "error"):
            self._say(f"{format}: {event.data['status']}")
        if event.data.get("stage", event.data["status"]) in _PAST_FETCHING:
            self._at[format] = f"{format} at {event.data['progress']} %"
        if not self.killed and len(self._at) == len(self._jobs) and (ended := self._kill("ffmpeg")):
            self.killed = True
            self._say(f"{', '.join(self._at.values())}: SIGKILL to {ended}")


async def _watched(http: ClientSession, job_id: str, watch: Watch) -> None:
    async for event in followed(http, f"/api/convert/{job_id}/events"):
        watch.tell(job_id, event)


# -- what came of it ---------------------------------------------------------------------------------------------


async def _found(
    http: ClientSession, settings: Settings, sink: ClickHouseSink, folder: Path, jobs: Mapping[str, str]
) -> FoundFiles:
    """What is known of the jobs, once ClickHouse has their ends and the bucket their results alone, or the time is over.

    An attempt that was lost just after its upload leaves an object, which the stream itself removes when the job ends.
    """
    states = {job_id: await json_of(http, f"/api/convert/{job_id}") for job_id in jobs}
    results = {
        job_id: await _result(http, state["download_url"], folder / f"result.{jobs[job_id]}")
        for job_id, state in states.items()
        if state["download_url"]
    }
    deadline = time.monotonic() + SETTLE_S
    while True:
        found = FoundFiles(states, await _rows(sink), results, await _objects(settings))
        ended = {row["job_id"] for row in found.rows if row["status"] in ("completed", "failed")}
        if (ended >= jobs.keys() and found.objects == found.winners) or time.monotonic() > deadline:
            return replace(found, ends=await _ends(settings))
        await asyncio.sleep(0.3)


async def _result(http: ClientSession, url: str, file: Path) -> Result:
    async with http.get(URL(url, encoded=True)) as answer:
        data = await answer.read()
        if answer.status != 200:
            raise Refused(f"the link to {file.name} answered {answer.status}: {data[:500].decode(errors='replace')}")
    await asyncio.to_thread(file.write_bytes, data)
    return Result(await media_of(file), len(data), hashlib.md5(data, usedforsecurity=False).hexdigest())


async def _rows(sink: ClickHouseSink) -> list[dict[str, Any]]:
    rows = await sink.query(f"SELECT {', '.join(_COLUMNS)} FROM {sink.qualified('file_jobs')}")
    return [dict(zip(_COLUMNS, row, strict=True)) for row in rows]


async def _objects(settings: Settings) -> frozenset[str]:
    store = bucket(settings)
    try:
        return frozenset([info.key async for info in store.list(CONVERTED)])
    finally:
        await store.close()


async def _ends(settings: Settings) -> dict[str, list[str]]:
    """The names of the final events that Kafka has committed, by job."""
    ends: dict[str, list[str]] = defaultdict(list)

    async def read(partition: int) -> None:
        async for records in read_changelog(specs.FILES_PROGRESS, partition, kafka_access(settings).aiokafka()):
            for _, value in records:
                event = decode_event(value)
                if isinstance(event, FINAL_EVENTS):
                    ends[event.job_id].append(type(event).__name__)

    await asyncio.gather(*(read(partition) for partition in range(settings.partitions)))
    return ends
