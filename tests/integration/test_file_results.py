"""A conversion's result is looked at before its job ends, on every S3 server: only the bytes that were sent will do."""

from __future__ import annotations

import hashlib

import aiohttp
import pytest
from yarl import URL

from compose.filestore import BucketFileStore
from sinks.objects import PART_BYTES_MIN, Bucket
from sinks.presign import Presigner
from streams.files.job import Upload
from streams.files.store import StoreRefused, UploadGone
from topics.files import SentPart

pytestmark = pytest.mark.stack

DATA = hashlib.shake_128(b"result").digest(PART_BYTES_MIN + 777)
KEY = "converted/looked-at.mp3"


@pytest.fixture
async def files(bucket: Bucket) -> BucketFileStore:
    made = BucketFileStore(
        bucket, Presigner(bucket), expires_s=60, part_bytes=PART_BYTES_MIN, result_bytes=PART_BYTES_MIN * 3
    )
    await made.remove(KEY)
    return made


def _sent(data: bytes, *parts: SentPart) -> Upload:
    return Upload(len(data), hashlib.md5(data).hexdigest(), 1_000, parts)


async def _put(url: str, data: bytes, **headers: str) -> None:
    async with aiohttp.ClientSession() as http, http.put(URL(url, encoded=True), data=data, headers=headers) as answer:
        assert answer.status == 200, await answer.text()


async def _put_parts(files: BucketFileStore) -> tuple[str, tuple[SentPart, ...]]:
    """The data in two parts; the upload's id, and they."""
    signed = await files.sign(KEY, "audio/mpeg", True)
    assert signed.upload_id is not None and signed.part_bytes == PART_BYTES_MIN and len(signed.parts) == 3
    sent = []
    for number, part in enumerate((DATA[:PART_BYTES_MIN], DATA[PART_BYTES_MIN:]), 1):
        await _put(signed.parts[number - 1], part)
        sent.append(SentPart(number, hashlib.md5(part).hexdigest()))
    return signed.upload_id, tuple(sent)


@pytest.mark.parametrize(
    ("stored", "problem"),
    [
        (DATA, None),
        (None, "no object"),
        (b"", f"0 bytes, and {len(DATA):,} were sent"),
        (DATA[:-1], f"{len(DATA) - 1:,} bytes, and {len(DATA):,} were sent"),
        (DATA[::-1], "has the sum"),
    ],
    ids=["as sent", "nothing", "empty", "cut off", "other bytes"],
)
async def test_only_what_was_sent_is_a_result(
    files: BucketFileStore, bucket: Bucket, stored: bytes | None, problem: str | None
) -> None:
    signed = await files.sign(KEY, "audio/mpeg", False)
    assert signed.upload_id is None and not signed.parts
    if stored is not None:
        await _put(signed.url, stored, **{"Content-Type": "audio/mpeg"})
    found = await files.finish(KEY, None, _sent(DATA))
    assert found is None if problem is None else found is not None and problem in found


async def test_parts_become_the_result_once_and_may_be_looked_at_again(files: BucketFileStore) -> None:
    upload_id, parts = await _put_parts(files)
    assert await files.size_of(KEY) is None
    for _ in range(2):  # the worker that asked first has died
        assert await files.finish(KEY, upload_id, _sent(DATA, *parts)) is None
    assert await files.size_of(KEY) == len(DATA)


async def test_a_part_less_is_no_result(files: BucketFileStore) -> None:
    upload_id, parts = await _put_parts(files)
    try:
        problem = await files.finish(KEY, upload_id, _sent(DATA, parts[0]))
    except StoreRefused:
        return  # a server may want all parts that it has
    assert problem is not None and f"{PART_BYTES_MIN:,} bytes, and {len(DATA):,} were sent" in problem


async def test_parts_that_the_store_does_not_have_are_no_result(files: BucketFileStore) -> None:
    upload_id, parts = await _put_parts(files)
    with pytest.raises((StoreRefused, UploadGone)):
        await files.finish(KEY, upload_id, _sent(DATA, parts[0], SentPart(3, parts[1].etag)))
    assert await files.size_of(KEY) is None


async def test_a_result_that_went_whole_leaves_no_upload(files: BucketFileStore, bucket: Bucket) -> None:
    signed = await files.sign(KEY, "audio/mpeg", True)
    await _put(signed.url, DATA, **{"Content-Type": "audio/mpeg"})
    assert await files.finish(KEY, signed.upload_id, _sent(DATA)) is None
    assert [upload async for upload in bucket.list_uploads(KEY)] == []
