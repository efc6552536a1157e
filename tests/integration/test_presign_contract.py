"""What presigned URLs promise, by plain HTTP, on every S3 server: the embedded one, versitygw, and one as strict as R2."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator
from pathlib import Path
from urllib.parse import urlsplit

import aiohttp
import pytest

from compose.local.process import free_port
from compose.local.s3 import S3
from sinks.errors import SinkRefused
from sinks.objects import PART_BYTES_MIN, Bucket, BucketAddress, UploadLost, multipart_etag
from sinks.presign import Presigner, Usage
from tests.objectstores import ObjectStore
from topics.files_keys import converted_key, upload_key

pytestmark = pytest.mark.stack

NAMES = ["clip.mp3", "Übung – 音.mp3", "../../etc/passwd", "a\"b'c\n\r\t.mp3", "x" * 500 + ".webm", "100%#?&+.wav"]
#: S3 and R2 answer 403 past a URL's time, rclone 400.
_REFUSED = (400, 403)
DATA = hashlib.shake_128(b"file").digest(200_003)


@pytest.fixture
def presigner(bucket: Bucket) -> Presigner:
    return Presigner(bucket)


@pytest.fixture
async def http() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession() as session:
        yield session


async def _put(http: aiohttp.ClientSession, url: str, data: bytes, headers: dict[str, str]) -> tuple[int, str]:
    async with http.put(_url(url), data=data, headers=headers) as answer:
        await answer.read()
        return answer.status, answer.headers.get("ETag", "").strip('"')


async def _get(http: aiohttp.ClientSession, url: str, **headers: str) -> tuple[int, bytes, aiohttp.ClientResponse]:
    async with http.get(_url(url), headers=headers) as answer:
        return answer.status, await answer.read(), answer


def _url(url: str) -> aiohttp.client.URL:
    return aiohttp.client.URL(url, encoded=True)


@pytest.mark.parametrize("name", NAMES)
async def test_what_is_put_by_url_is_what_its_link_gives(
    presigner: Presigner, http: aiohttp.ClientSession, name: str
) -> None:
    upload = presigner.upload(converted_key(1_700_000_000_000, "job-1", 3, 1, name), "audio/mpeg")
    status, etag = await _put(http, upload.url, DATA, dict(upload.headers))
    assert (status, etag) == (200, hashlib.md5(DATA).hexdigest())
    stored = await presigner.stored(upload.key)
    assert stored is not None and (stored.size_bytes, stored.content_type) == (len(DATA), "audio/mpeg")
    status, data, answer = await _get(http, presigner.download(upload.key, 'Übung "1" – 音.mp3'))
    assert (status, data) == (200, DATA)
    disposition = answer.content_disposition
    assert disposition is not None and disposition.filename == 'Übung "1" – 音.mp3'
    status, data, answer = await _get(http, presigner.download(upload.key), Range="bytes=100-199")
    assert data == DATA[100:200]
    assert answer.headers["Content-Range"] == f"bytes 100-199/{len(DATA)}"
    assert answer.headers["ETag"].strip('"') == etag


async def test_an_object_tells_caches_what_its_upload_said(presigner: Presigner, http: aiohttp.ClientSession) -> None:
    """A whole upload says it by a header that its signature does not bind, one in parts when it is begun."""
    said = "public, max-age=9"
    whole = presigner.upload("converted/whole.mp3", "audio/mpeg")
    assert (await _put(http, whole.url, DATA, {**whole.headers, "Cache-Control": said}))[0] == 200
    begun = await presigner.begin("converted/parts.mp3", "audio/mpeg", 1, PART_BYTES_MIN, cache_control=said)
    status, etag = await _put(http, begun.urls[0], DATA, {})
    assert status == 200
    await presigner.complete(begun.key, begun.upload_id, {1: etag})
    for key in (whole.key, begun.key):
        status, data, answer = await _get(http, presigner.read(key))
        assert (status, data, answer.headers["Cache-Control"]) == (200, DATA, said)


@pytest.mark.needs("range_status")
async def test_a_range_is_answered_as_partial_content(
    presigner: Presigner, bucket: Bucket, http: aiohttp.ClientSession
) -> None:
    await bucket.put("converted/ranged.mp4", DATA)
    assert (await _get(http, presigner.download("converted/ranged.mp4"), Range="bytes=1-2"))[0] == 206


async def test_a_url_does_only_what_it_was_signed_for(presigner: Presigner, http: aiohttp.ClientSession) -> None:
    upload = presigner.upload("converted/bound.mp3", "audio/mpeg", metadata={"job": "j-1"})
    headers = dict(upload.headers)
    for wrong in (
        {**headers, "Content-Type": "text/html"},
        {**headers, "x-amz-meta-job": "j-2"},
        {name: value for name, value in headers.items() if not name.startswith("x-amz")},
    ):
        assert (await _put(http, upload.url, DATA, wrong))[0] == 403
    assert (await _put(http, upload.url.replace("bound", "other"), DATA, headers))[0] == 403
    assert (await _get(http, upload.url))[0] == 403
    assert (await _put(http, presigner.download(upload.key), DATA, headers))[0] == 403
    assert await presigner.stored(upload.key) is None
    assert (await _put(http, upload.url, DATA, headers))[0] == 200
    stored = await presigner.stored(upload.key)
    assert stored is not None and stored.metadata == {"job": "j-1"}


async def test_an_upload_has_the_size_it_was_signed_for(presigner: Presigner, http: aiohttp.ClientSession) -> None:
    upload = presigner.upload(upload_key("u-1", "a.wav"), "audio/wav", size_bytes=1_000)
    assert (await _put(http, upload.url, DATA, {"Content-Type": "audio/wav"}))[0] == 403
    assert await presigner.stored(upload.key) is None
    assert (await _put(http, upload.url, DATA[:1_000], {"Content-Type": "audio/wav"}))[0] == 200


async def test_a_url_expires(presigner: Presigner, http: aiohttp.ClientSession) -> None:
    upload = presigner.upload("converted/late.mp3", "audio/mpeg", expires_s=1)
    link = presigner.download(upload.key, expires_s=1)
    async with asyncio.timeout(10):
        while (await _get(http, link))[0] not in _REFUSED:  # noqa: ASYNC110 - the store's clock has no event
            await asyncio.sleep(0.1)
    assert (await _put(http, upload.url, DATA, dict(upload.headers)))[0] in _REFUSED


async def test_a_large_file_goes_in_equal_parts(presigner: Presigner, http: aiohttp.ClientSession) -> None:
    data = hashlib.shake_128(b"large").digest(PART_BYTES_MIN * 2 + 777)
    parts = [data[at : at + PART_BYTES_MIN] for at in range(0, len(data), PART_BYTES_MIN)]
    begun = await presigner.begin("converted/large.mp4", "video/mp4", 5, PART_BYTES_MIN, metadata={"job": "j-1"})
    assert len(begun.urls) == 5
    etags = {}
    for number, part in enumerate(parts, 1):
        status, etags[number] = await _put(http, begun.urls[number - 1], part, {})
        assert (status, etags[number]) == (200, hashlib.md5(part).hexdigest())
    info = await presigner.complete(begun.key, begun.upload_id, etags)
    assert info.size_bytes == len(data)
    assert info.etag in (multipart_etag(etags.values()), hashlib.md5(data).hexdigest())
    assert await presigner.complete(begun.key, begun.upload_id, etags) == info  # the first answer was lost
    assert (await _get(http, presigner.read(begun.key)))[1] == data
    stored = await presigner.stored(begun.key)
    assert stored is not None and (stored.content_type, stored.metadata) == ("video/mp4", {"job": "j-1"})


async def test_the_parts_of_a_known_size_take_that_size(presigner: Presigner, http: aiohttp.ClientSession) -> None:
    size = PART_BYTES_MIN + 10
    begun = await presigner.begin("uploads/u-2/a.mp4", "video/mp4", 2, PART_BYTES_MIN, size_bytes=size)
    assert (await _put(http, begun.urls[1], b"x" * 11, {}))[0] == 403
    assert (await _put(http, begun.urls[1], b"x" * 10, {}))[0] == 200
    await presigner.abort(begun.key, begun.upload_id)


async def test_an_upload_that_was_given_up_leaves_nothing(
    presigner: Presigner, bucket: Bucket, http: aiohttp.ClientSession
) -> None:
    begun = await presigner.begin("converted/given-up.mp4", "video/mp4", 1, PART_BYTES_MIN)
    status, etag = await _put(http, begun.urls[0], DATA, {})
    assert status == 200
    for _ in range(2):
        await presigner.abort(begun.key, begun.upload_id)
    with pytest.raises(UploadLost):
        await presigner.complete(begun.key, begun.upload_id, {1: etag})
    assert (await _put(http, begun.urls[0], DATA, {}))[0] == 404
    assert [upload async for upload in bucket.list_uploads(begun.key)] == []
    assert await presigner.stored(begun.key) is None


async def test_usage_is_counted_by_prefix(presigner: Presigner, bucket: Bucket) -> None:
    await bucket.delete_many([info.key async for info in bucket.list()])
    for key, size in (("converted/a", 10), ("converted/b/c", 5), ("uploads/1/x", 3), ("loose", 1)):
        await bucket.put(key, b"." * size)
    wanted = {"": Usage(1, 1), "converted/": Usage(2, 15), "uploads/": Usage(1, 3)}
    assert await presigner.usage() == wanted


async def test_a_page_of_another_origin_may_upload_and_read_the_etag(
    store: ObjectStore, presigner: Presigner, http: aiohttp.ClientSession
) -> None:
    origin = "https://app.example.com"
    try:
        await presigner.allow_origins([origin])
    except SinkRefused:
        assert store.name != "versitygw", "it sets rules for a bucket"
    upload = presigner.upload("converted/cors.mp3", "audio/mpeg")
    asked = {"Origin": origin, "Access-Control-Request-Method": "PUT", "Access-Control-Request-Headers": "content-type"}
    async with http.options(_url(upload.url), headers=asked) as answer:
        assert answer.status in (200, 204)
        assert answer.headers["Access-Control-Allow-Origin"] in ("*", origin)
        assert "PUT" in answer.headers["Access-Control-Allow-Methods"]
        assert "content-type" in answer.headers["Access-Control-Allow-Headers"].lower()
    async with http.put(_url(upload.url), data=DATA, headers={**upload.headers, "Origin": origin}) as answer:
        assert answer.status == 200
        assert answer.headers["Access-Control-Allow-Origin"] in ("*", origin)
        assert "etag" in answer.headers["Access-Control-Expose-Headers"].lower()
        assert answer.headers["ETag"]


@pytest.mark.needs("cors_rules")
async def test_the_servers_rules_hold_for_other_origins(presigner: Presigner, http: aiohttp.ClientSession) -> None:
    await presigner.allow_origins(["https://app.example.com"])
    upload = presigner.upload("converted/cors.mp3", "audio/mpeg")
    asked = {"Origin": "https://evil.example", "Access-Control-Request-Method": "PUT"}
    async with http.options(_url(upload.url), headers=asked) as answer:
        assert answer.status == 403


async def test_urls_name_the_endpoint_and_hold_no_secret(presigner: Presigner, store: ObjectStore) -> None:
    upload = presigner.upload("converted/a.mp3", "audio/mpeg")
    assert urlsplit(upload.url).netloc == urlsplit(store.proxy.url).netloc
    assert "sluiceway-secret" not in upload.url
    assert upload.url not in repr(upload)


def test_the_embedded_server_answers_a_preflight_without_a_proxy(tmp_path: Path) -> None:
    async def asked(url: str) -> int:
        headers = {"Origin": "http://127.0.0.1:8080", "Access-Control-Request-Method": "PUT"}
        bucket = Bucket(BucketAddress(url, "sluiceway", "sluiceway", "sluiceway-secret"))
        put = Presigner(bucket).upload("converted/a.mp3", "audio/mpeg")
        async with aiohttp.ClientSession() as session, session.options(_url(put.url), headers=headers) as answer:
            return answer.status

    server = S3(tmp_path, free_port())
    server.start()
    try:
        assert asyncio.run(asked(server.url)) == 200
    finally:
        server.stop()
