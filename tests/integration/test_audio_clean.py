"""`sluiceway clean` on a real bucket and ClickHouse: it takes what nobody needs, and nothing that any session does."""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from compose import cleaning
from compose.cleaning import Cleaner, Swept
from compose.cli import app
from compose.commands.clean import document, duration_s
from compose.local.process import free_port
from compose.local.stack import LocalStack
from sinks.objects import PART_BYTES_MIN, Bucket
from streams.audio import leftovers
from streams.audio.rows import Rows
from streams.audio.session import Kept, Recording, Segment, Session, Status
from tests.audiofold import opened, pcm
from tests.objectstores import ObjectStore, versitygw
from tests.warehouse import migrated
from topics.audio import Format, Store, Tier
from topics.audio_events import (
    ClosedBy,
    Manifest,
    encode_manifest,
    manifest_key,
    recording_key,
    segment_key,
)

pytestmark = pytest.mark.stack

AUDIO = pcm("s", 0)
DAY_MS = 86_400_000


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory, versity: Path) -> Iterator[ObjectStore]:
    with versitygw(tmp_path_factory.mktemp("versitygw"), versity) as store:
        yield store


@dataclass
class Case:
    """A session: what ClickHouse says of it, what lies in its folder, and what of that may go."""

    status: Status | None
    segments: dict[tuple[int, int], Kept] = field(default_factory=dict)
    objects: dict[tuple[int, int], bytes] = field(default_factory=dict)
    recordings: tuple[str, ...] = ()
    manifest: str = ""
    recorded: str = ""
    ended_ms_ago: int = 1_000
    upload: bool = False
    goes: tuple[str, ...] = ()


FIRST, SECOND = (0, 9), (10, 19)
SEGMENT = "segments/0000000000-0000000009.wav"
STORED, FAILED, REMOVED = Kept.STORED, Kept.FAILED, Kept.REMOVED
FINISHED: dict[str, Any] = {"recordings": ("flac",), "manifest": "flac", "recorded": "flac"}
CASES: dict[str, Case] = {
    "open": Case(Status.OPEN, {FIRST: STORED}, {FIRST: AUDIO}, upload=True),
    "open-unshown": Case(Status.OPEN, {}, {FIRST: AUDIO}),
    "closing": Case(Status.CLOSING, {FIRST: STORED}, {FIRST: AUDIO}, ("flac",), upload=True),
    "reopened": Case(Status.OPEN, {FIRST: REMOVED}, {FIRST: AUDIO}, **FINISHED),
    "retry": Case(Status.CLOSED, {FIRST: STORED, SECOND: FAILED}, {FIRST: AUDIO, SECOND: AUDIO}, **FINISHED),
    "failed": Case(Status.CLOSED, {FIRST: FAILED}, {FIRST: AUDIO}, ended_ms_ago=3 * DAY_MS),
    "unrecorded": Case(Status.CLOSED, {FIRST: STORED}, {FIRST: AUDIO}, ended_ms_ago=3 * DAY_MS),
    "kept-segments": Case(Status.CLOSED, {FIRST: STORED}, {FIRST: AUDIO}, **FINISHED),
    "late-put": Case(Status.CLOSED, {FIRST: REMOVED}, {FIRST: AUDIO}, **FINISHED, goes=(SEGMENT,)),
    "late-other-bytes": Case(Status.CLOSED, {FIRST: REMOVED}, {FIRST: AUDIO[::-1]}, **FINISHED),
    "late-recording-gone": Case(
        Status.CLOSED, {FIRST: REMOVED}, {FIRST: AUDIO}, recordings=(), manifest="flac", recorded="flac"
    ),
    "unknown": Case(None, {}, {FIRST: AUDIO}, ("flac",)),
    "other-recording": Case(
        Status.CLOSED, {FIRST: REMOVED}, {}, ("flac", "wav"), "flac", "flac", goes=("recording.wav",)
    ),
    "whole": Case(Status.CLOSED, {FIRST: REMOVED}, {}, **FINISHED),
    "given-up": Case(Status.CLOSED, {FIRST: REMOVED}, {}, **FINISHED, upload=True, goes=("upload recording.flac",)),
}


def session_of(name: str, case: Case) -> tuple[Session, list[Segment]]:
    assert case.status is not None
    ended_ms = int(time.time() * 1000) - case.ended_ms_ago
    session = Session(opened(name), 1_000, 0, status=case.status, version=7, closed_ms=ended_ms)
    if case.recorded:
        session.recording = Recording(recording_key(name, case.recorded), len(AUDIO), "", 0)
    md5 = hashlib.md5(AUDIO).digest()
    return session, [
        Segment(first, last, 0, 9, len(AUDIO), 0, kept, 1, len(AUDIO), md5 if kept is not FAILED else b"")
        for (first, last), kept in case.segments.items()
    ]


def manifest_of(name: str, extension: str) -> Manifest:
    key = recording_key(name, extension)
    return Manifest(
        session_id=name,
        user="u",
        format=Format.PCM_S16LE,
        rate=8_000,
        channels=1,
        tier=Tier.STANDARD,
        store=Store.FLAC,
        opened_ms=1,
        closed_ms=2,
        closed_by=ClosedBy.CLIENT,
        duration_ms=3,
        recording=key,
        size_bytes=len(AUDIO),
        md5="",
        sha256="",
        seqs=((0, 19),),
        gaps=(),
    )


async def fill(bucket: Bucket, sink: Any) -> None:
    """All cases, in an empty bucket and database."""
    await bucket.delete_many([info.key async for info in bucket.list("audio/")])
    await bucket.abort_uploads("audio/", -1.0)
    rows = Rows()
    for name, case in CASES.items():
        if case.status is not None:
            rows.add(*session_of(name, case), 0)
        for seqs, data in case.objects.items():
            await bucket.put(segment_key(name, *seqs, "wav"), data)
        for extension in case.recordings:
            await bucket.put(recording_key(name, extension), AUDIO)
        if case.manifest:
            await bucket.put(manifest_key(name), encode_manifest(manifest_of(name, case.manifest)))
        if case.upload:
            upload = await bucket.upload(recording_key(name, "flac"), PART_BYTES_MIN)
            await upload.part(1, bytes(PART_BYTES_MIN))
    await bucket.put("audio/notes.txt", b"an operator's own")
    for table, found in rows.tables().items():
        await sink.insert(table, found)


async def there(bucket: Bucket) -> set[str]:
    """All objects and open uploads, without the folder's name."""
    objects = {info.key.removeprefix("audio/") async for info in bucket.list("audio/")}
    uploads = {upload.key.removeprefix("audio/") async for upload in bucket.list_uploads("audio/")}
    return objects | {"/upload ".join(key.split("/")) for key in uploads}


async def sweep(stack: LocalStack, store: ObjectStore, **how: Any) -> tuple[set[str], Swept, set[str]]:
    """What was there, what the sweep says, and what is gone."""
    how = {"older_than_s": -1.0, "dry_run": False, **how}
    bucket = Bucket(store.address)
    try:
        async with migrated(stack.clickhouse.url) as sink:
            await fill(bucket, sink)
            before = await there(bucket)
            swept = await Cleaner(bucket, sink, **how).run()
            return before, swept, before - await there(bucket)
    finally:
        await bucket.close()


WANTED = {f"{name}/{thing}" for name, case in CASES.items() for thing in case.goes}


def test_exactly_what_nobody_needs_goes(stack: LocalStack, store: ObjectStore) -> None:
    before, swept, gone = asyncio.run(sweep(stack, store))
    assert gone == WANTED and before > WANTED
    told = document(swept, dry_run=False)
    assert len(told["removed"]) == len(WANTED) and told["removed_bytes"] > 0
    assert sum(swept.kept.values()) > 10


def test_a_dry_run_only_says_so(stack: LocalStack, store: ObjectStore) -> None:
    _, swept, gone = asyncio.run(sweep(stack, store, dry_run=True))
    assert gone == set()
    assert {leftover.key for leftover in swept.leftovers} == {
        f"audio/{thing.replace('upload ', '')}" for thing in WANTED
    }


def test_what_is_young_is_left_alone(stack: LocalStack, store: ObjectStore) -> None:
    _, swept, gone = asyncio.run(sweep(stack, store, older_than_s=3_600.0))
    assert gone == set() and swept.leftovers == []


def test_a_sweep_that_forgets_who_is_live_is_noticed(
    stack: LocalStack, store: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leftovers, "live", lambda known: False)
    _, _, gone = asyncio.run(sweep(stack, store))
    assert {"reopened/" + SEGMENT, "open/upload recording.flac", "closing/recording.flac"} <= gone - WANTED


def test_a_sweep_that_asks_no_bytes_is_noticed(
    stack: LocalStack, store: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    judge = leftovers.judge_object
    right = hashlib.md5(AUDIO).hexdigest()
    monkeypatch.setattr(cleaning, "judge_object", lambda key, etag, known: judge(key, right, known))
    _, _, gone = asyncio.run(sweep(stack, store))
    assert gone - WANTED == {"late-other-bytes/" + SEGMENT}


def test_an_object_that_was_put_anew_meanwhile_stays(stack: LocalStack, store: ObjectStore) -> None:
    key = segment_key("late-put", *FIRST, "wav")
    store.proxy.reset()
    # Manifests are read between the listing and the first removal.
    store.proxy.then("GetObject", lambda: store.raw().put_object(Bucket="sluiceway", Key=key, Body=AUDIO[::-1]))
    _, swept, gone = asyncio.run(sweep(stack, store))
    assert gone == WANTED - {f"late-put/{SEGMENT}"}
    assert swept.kept[leftovers.Verdict.REPLACED] == 1
    assert key not in {leftover.key for leftover in swept.leftovers}


def test_what_head_says_of_an_objects_age_keeps_nothing(
    stack: LocalStack, store: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    head = Bucket.head

    async def older(bucket: Bucket, key: str) -> Any:
        """As rclone may tell it of an object that was put twice."""
        found = await head(bucket, key)
        return found and replace(found, modified_ms=found.modified_ms - 14_000)

    monkeypatch.setattr(Bucket, "head", older)
    assert asyncio.run(sweep(stack, store))[2] == WANTED


@pytest.mark.parametrize(
    ("text", "seconds"), [("24h", 86_400), ("90m", 5_400), ("7d", 604_800), ("0s", 0), ("1.5h", 5_400)]
)
def test_durations(text: str, seconds: float) -> None:
    assert duration_s(text) == seconds


@pytest.mark.parametrize("text", ["", "24", "h", "-1h", "1w", "1h30m"])
def test_what_is_no_duration(text: str) -> None:
    assert duration_s(text) is None


def test_nothing_goes_while_clickhouse_is_away(stack: LocalStack, store: ObjectStore) -> None:
    env = stack.settings(s3_endpoint=store.proxy.url, clickhouse_url=f"http://127.0.0.1:{free_port()}").environ()
    store.raw().put_object(Bucket="sluiceway", Key=f"audio/away/{SEGMENT}", Body=AUDIO)
    done = CliRunner().invoke(app, ["clean", "--older-than", "0s"], env=env)
    assert done.exit_code == 1 and "clickhouse" in done.output.lower(), done.output
    assert store.raw().head_object(Bucket="sluiceway", Key=f"audio/away/{SEGMENT}")


def test_a_wrong_age_is_told() -> None:
    done = CliRunner().invoke(app, ["clean", "--older-than", "soon"])
    assert done.exit_code == 2 and "no duration" in done.output
