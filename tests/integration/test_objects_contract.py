"""What the object sink promises, on every S3 server: the embedded one, versitygw, and one as strict as R2.

What a server lacks is in `tests.objectstores.GAPS`: a test that needs it is expected to fail there.
"""

from __future__ import annotations

import asyncio
import hashlib
import tracemalloc
from collections.abc import AsyncIterator
from dataclasses import replace

import pytest
from botocore.exceptions import ClientError

from sinks.errors import SinkMismatch, SinkRefused
from sinks.objects import (
    PART_BYTES_MAX,
    PART_BYTES_MIN,
    PARTS_MAX,
    Bucket,
    ObjectChanged,
    ObjectInfo,
    ObjectMissing,
    Upload,
    UploadLost,
    UploadState,
    multipart_etag,
)
from tests.objectstores import Impatient, ObjectStore
from tests.waiting import until

pytestmark = pytest.mark.stack

PART = PART_BYTES_MIN
DEADLINE_S = 15.0


@pytest.fixture
def key(request: pytest.FixtureRequest) -> str:
    """A key of the test's own."""
    return f"{request.node.name}/an object: ü + %2F & 1"


def _bytes(size: int, seed: int = 0) -> bytes:
    """Bytes that differ everywhere and from every other seed's."""
    return hashlib.shake_128(str(seed).encode()).digest(size)


def _md5(data: bytes) -> str:
    return hashlib.md5(data).hexdigest()


PARTS = [_bytes(PART, 1), _bytes(PART, 2), _bytes(1_000_003, 3)]


async def _numbered(parts: list[bytes]) -> AsyncIterator[tuple[int, bytes]]:
    for number, data in enumerate(parts, 1):
        yield number, data


async def _sent(upload: Upload, parts: list[bytes]) -> list[bool]:
    return [await upload.part(number, data) for number, data in enumerate(parts, 1)]


# -- whole objects -----------------------------------------------------------------------------------------------


async def test_an_object_is_what_was_put_with_its_type_and_metadata(bucket: Bucket, key: str) -> None:
    data = _bytes(300_000)
    info = await bucket.put_verified(key, data, "audio/flac", _md5(data), {"session": "s-1", "Seqs": "0-99"})
    assert info == ObjectInfo(len(data), _md5(data)) == await bucket.head(key)
    assert (info.key, info.content_type, info.metadata) == (key, "audio/flac", {"session": "s-1", "seqs": "0-99"})
    assert info.modified_ms > 1_700_000_000_000
    assert await bucket.get(key) == data


async def test_the_same_key_again_replaces(bucket: Bucket, key: str) -> None:
    for data in (b"first", b"second and longer", b""):
        assert await bucket.put_verified(key, data) == ObjectInfo(len(data), _md5(data))
        assert await bucket.get(key) == data


async def test_what_is_not_there_is_none(bucket: Bucket, key: str) -> None:
    assert await bucket.get(key) is None
    assert await bucket.head(key) is None
    assert await bucket.get_range(key, 0, 10) is None
    with pytest.raises(ObjectMissing, match=r"read sluiceway/.*no such object"):
        [block async for block in bucket.read(key)]


@pytest.mark.parametrize("odd", ["/a", "a//b", "a/./b", "../../a", "a/..", "."])
async def test_a_key_that_a_server_cannot_have_is_not_waited_for(bucket: Bucket, odd: str) -> None:
    """It may be a client's word, and whoever waits for it holds others up."""
    async with asyncio.timeout(10):
        try:
            assert await bucket.head(odd) is None
        except SinkRefused as refused:
            assert odd in str(refused)


async def test_a_range_is_a_slice(bucket: Bucket, key: str) -> None:
    data = _bytes(1_000)
    await bucket.put(key, data)
    for start, end in [(0, 1), (0, 1_000), (10, 999), (999, 1_000), (990, 5_000), (1_000, 1_001), (5_000, 6_000)]:
        assert await bucket.get_range(key, start, end) == data[start:end], (start, end)


@pytest.mark.parametrize("size", [0, 1, 9_999, 10_000, 10_001, 35_000])
async def test_reading_gives_the_bytes_in_blocks(bucket: Bucket, store: ObjectStore, key: str, size: int) -> None:
    data = _bytes(size)
    await bucket.put(key, data)
    blocks = [block async for block in bucket.read(key, 10_000)]
    assert b"".join(blocks) == data
    assert [len(block) for block in blocks] == [10_000] * (size // 10_000) + [size % 10_000] * (size % 10_000 > 0)
    assert store.proxy.count("GetObject") == max(1, len(blocks))


async def test_reading_goes_on_where_a_connection_broke(bucket: Bucket, store: ObjectStore, key: str) -> None:
    data = _bytes(50_000)
    await bucket.put(key, data)
    store.proxy.drop("GetObject", 2)
    store.proxy.refuse("GetObject", 2)
    store.proxy.lose_answer("GetObject", 2)
    assert b"".join([block async for block in bucket.read(key, 10_000)]) == data
    assert store.proxy.count("GetObject") == 5 + 6


@pytest.mark.parametrize("by", ["replaced", "removed", "cut"])
async def test_an_object_that_changes_while_it_is_read_is_not_mixed(
    bucket: Bucket, store: ObjectStore, key: str, by: str
) -> None:
    data = _bytes(50_000)
    await bucket.put(key, data)
    read: list[bytes] = []
    with pytest.raises(ObjectChanged, match="replaced or removed"):
        async for block in bucket.read(key, 10_000):
            read.append(block)
            if len(read) == 2:
                others = {"replaced": _bytes(50_000, 1), "cut": data[:20_000]}
                await (bucket.delete(key) if by == "removed" else bucket.put(key, others[by]))
    assert b"".join(read) == data[:20_000]


async def test_deleting_twice_is_deleting_once(bucket: Bucket, key: str) -> None:
    await bucket.put(key, b"data")
    await bucket.delete(key)
    await bucket.delete(key)
    assert await bucket.head(key) is None


async def test_many_are_deleted_in_few_requests(
    bucket: Bucket, store: ObjectStore, key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sinks.objects.whole._DELETES_MAX", 10)
    keys = [f"{key}/{number} <&\">' ü+%20" for number in range(23)]
    await asyncio.gather(*[bucket.put(one, b"data") for one in [*keys, f"{key}/kept"]])
    store.proxy.refuse("DeleteObjects", 1)
    store.proxy.fail_keys()
    await bucket.delete_many([*keys, f"{key}/never there"])
    await bucket.delete_many(keys)
    await bucket.delete_many([])
    assert [info.key async for info in bucket.list(f"{key}/")] == [f"{key}/kept"]
    assert store.proxy.count("DeleteObjects") == 2 + 3 + 3


async def test_a_key_that_xml_cannot_carry_is_deleted_too(bucket: Bucket, key: str) -> None:
    odd = f"{key}/a\x01b"
    await bucket.put(odd, b"data")
    await bucket.put(f"{key}/even", b"data")
    await bucket.delete_many([odd, f"{key}/even"])
    assert await bucket.head(odd) is None and await bucket.head(f"{key}/even") is None


async def test_a_listing_has_every_object_below_its_prefix_in_order(
    bucket: Bucket, store: ObjectStore, key: str
) -> None:
    names = [f"{number:02d} <&\">' ü+%20" for number in range(17)]
    sizes = {f"{key}/in/{name}": number for number, name in enumerate(names)}
    await asyncio.gather(*[bucket.put(one, _bytes(size)) for one, size in sizes.items()])
    await bucket.put(f"{key}/inside", b"beside it")
    store.proxy.refuse("ListObjectsV2")
    store.proxy.lose_answer("ListObjectsV2")
    found = [info async for info in bucket.list(f"{key}/in/", page=5)]
    assert [(info.key, info.size_bytes, info.etag) for info in found] == [
        (one, size, _md5(_bytes(size))) for one, size in sorted(sizes.items())
    ]
    assert all(info.modified_ms > 1_700_000_000_000 for info in found)
    assert store.proxy.count("ListObjectsV2") == 4 + 2
    assert [info async for info in bucket.list(f"{key}/nothing/")] == []


async def test_a_sum_that_is_not_the_datas_is_refused_before_it_is_sent(
    bucket: Bucket, store: ObjectStore, key: str
) -> None:
    with pytest.raises(SinkRefused, match=f"has MD5 {_md5(b'data')}, not {_md5(b'other')} as told"):
        await bucket.put(key, b"data", md5=_md5(b"other"))
    assert store.proxy.seen == []


async def test_a_verified_put_notices_what_the_store_made_of_it(bucket: Bucket, store: ObjectStore, key: str) -> None:
    raw = store.raw()
    store.proxy.then("PutObject", lambda: raw.put_object(Bucket="sluiceway", Key=key, Body=b"dat@"))
    with pytest.raises(SinkMismatch, match=f"4 bytes of sum {_md5(b'data')} .* holds 4 bytes of sum {_md5(b'dat@')}"):
        await bucket.put_verified(key, b"data")
    store.proxy.then("PutObject", lambda: raw.delete_object(Bucket="sluiceway", Key=key))
    with pytest.raises(SinkMismatch, match="the store holds nothing"):
        await bucket.put_verified(key, b"data")


@pytest.mark.needs("survives_restart")
async def test_a_type_and_metadata_outlive_a_restart(bucket: Bucket, store: ObjectStore, key: str) -> None:
    await bucket.put(key, b"data", "audio/flac", None, {"session": "s-1"})
    store.server.kill()
    store.server.start()
    info = await bucket.head(key)
    assert info is not None and (info.content_type, info.metadata) == ("audio/flac", {"session": "s-1"})


# -- while the store is away -------------------------------------------------------------------------------------


@pytest.mark.parametrize("fault", ["refuse", "drop", "lose_answer", "spoil", "not_found"])
async def test_a_put_is_made_again_until_it_holds(bucket: Bucket, store: ObjectStore, key: str, fault: str) -> None:
    data = _bytes(200_000)
    getattr(store.proxy, fault)("PutObject", 3)
    info = await asyncio.wait_for(bucket.put_verified(key, data), DEADLINE_S)
    assert info == ObjectInfo(len(data), _md5(data))
    assert await bucket.get(key) == data
    assert store.proxy.count("PutObject") == 4
    assert bucket.available


async def test_a_store_that_is_down_is_waited_for(bucket: Bucket, store: ObjectStore, key: str) -> None:
    store.server.kill()
    waiting = asyncio.create_task(bucket.put_verified(key, b"data"))
    await until(lambda: not bucket.available, DEADLINE_S)
    assert not waiting.done() and bucket.last_error
    await asyncio.to_thread(store.server.start)
    assert await asyncio.wait_for(waiting, DEADLINE_S) == ObjectInfo(4, _md5(b"data"))
    assert bucket.available


async def test_a_slow_request_does_not_hold_up_the_others(bucket: Bucket, store: ObjectStore, key: str) -> None:
    store.proxy.slow("PutObject", 2.0)
    slow = asyncio.create_task(bucket.put(key, b"slow"))
    await until(lambda: store.proxy.count("PutObject") == 1, DEADLINE_S)
    await asyncio.wait_for(bucket.put(f"{key} other", b"quick"), 1.5)
    assert not slow.done()
    await slow


async def test_memory_holds_a_part_and_what_is_on_its_way(store: ObjectStore, key: str) -> None:
    bucket = Bucket(replace(store.address, endpoint=f"http://127.0.0.1:{store.server.port}"), Impatient())
    await bucket.put(f"{key} first", b"what a client needs is made with its first request")

    async def parts() -> AsyncIterator[tuple[int, bytes]]:
        for number in range(1, 11):
            yield number, bytes([number]) * PART

    tracemalloc.start()
    try:
        await (await bucket.upload(key, PART)).send(parts)
        sent_peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.reset_peak()
        read = [(len(block), block[0]) async for block in bucket.read(key, PART)]
        read_peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert read == [(PART, number) for number in range(1, 11)]
    # The caller may hold one; a body that arrives is held in pieces and then whole.
    assert sent_peak < 3.5 * PART and read_peak < 3.5 * PART, (sent_peak / PART, read_peak / PART)
    await bucket.close()


# -- what every write carries ------------------------------------------------------------------------------------


async def test_every_write_carries_its_md5_and_no_other_sum(bucket: Bucket, store: ObjectStore, key: str) -> None:
    await bucket.put(key, b"data")
    upload = await bucket.upload(key, PART)
    await _sent(upload, PARTS)
    await upload.complete()
    await bucket.delete_many([key])
    writes = [seen for seen in store.proxy.seen if seen.operation in ("PutObject", "UploadPart", "DeleteObjects")]
    assert [seen.operation for seen in writes] == ["PutObject", *["UploadPart"] * 3, "DeleteObjects"]
    for seen in writes:
        assert "content-md5" in seen.headers, seen
        assert not [name for name in seen.headers if "checksum" in name or "trailer" in name], seen


def test_the_server_refuses_bytes_of_another_sum(store: ObjectStore, key: str) -> None:
    raw = store.raw(store.proxy.url)
    md5 = "N6YlnMDB2uKZp4Zkid/wvQ=="
    with pytest.raises(ClientError, match="BadDigest"):
        raw.put_object(Bucket="sluiceway", Key=key, Body=b"data", ContentMD5=md5)
    upload = raw.create_multipart_upload(Bucket="sluiceway", Key=key)["UploadId"]
    with pytest.raises(ClientError, match="BadDigest"):
        raw.upload_part(Bucket="sluiceway", Key=key, UploadId=upload, PartNumber=1, Body=b"data", ContentMD5=md5)


def _complete_raw(store: ObjectStore, key: str, sizes: list[int]) -> None:
    raw = store.raw(store.proxy.url)
    which = {"Bucket": "sluiceway", "Key": key}
    which["UploadId"] = raw.create_multipart_upload(**which)["UploadId"]
    parts = [
        {"PartNumber": number, "ETag": raw.upload_part(**which, PartNumber=number, Body=_bytes(size))["ETag"]}
        for number, size in enumerate(sizes, 1)
    ]
    raw.complete_multipart_upload(**which, MultipartUpload={"Parts": parts})


@pytest.mark.needs("refuses_short_parts")
def test_the_server_refuses_short_parts(store: ObjectStore, key: str) -> None:
    with pytest.raises(ClientError, match="EntityTooSmall"):
        _complete_raw(store, key, [PART - 1, PART - 1, 10])


@pytest.mark.needs("refuses_unequal_parts")
@pytest.mark.parametrize("sizes", [[PART, PART + 1, 10], [PART, PART + 1]])
def test_the_server_refuses_unequal_parts(store: ObjectStore, key: str, sizes: list[int]) -> None:
    with pytest.raises(ClientError, match=r"InvalidPart.*All non-trailing parts must have the same length"):
        _complete_raw(store, key, sizes)


@pytest.mark.needs("refuses_crc")
def test_the_server_refuses_a_crc(store: ObjectStore, key: str) -> None:
    raw = store.raw(store.proxy.url)
    with pytest.raises(ClientError, match="NotImplemented"):
        raw.put_object(Bucket="sluiceway", Key=key, Body=b"data", ChecksumAlgorithm="CRC32")


# -- objects made of parts ---------------------------------------------------------------------------------------


async def _is_there(bucket: Bucket, key: str, parts: list[bytes]) -> None:
    found = await bucket.get(key)
    assert found is not None and _md5(found) == _md5(b"".join(parts))


@pytest.mark.parametrize("order", [(1, 2, 3), (2, 3, 1), (3, 1, 2)])
async def test_parts_make_an_object_whatever_their_order(bucket: Bucket, key: str, order: tuple[int, ...]) -> None:
    upload = await bucket.upload(key, PART, "audio/flac", {"session": "s-1"})
    for number in order:
        assert await upload.part(number, PARTS[number - 1])
    assert await bucket.head(key) is None
    assert sorted(upload.parts) == [1, 2, 3]
    info = await upload.complete()
    assert (info.key, info.size_bytes) == (key, sum(map(len, PARTS)))
    assert (info.content_type, info.metadata) == ("audio/flac", {"session": "s-1"})
    await _is_there(bucket, key, PARTS)


async def test_the_first_part_may_come_last_however_large_the_object(store: ObjectStore, key: str) -> None:
    """More than a server may want to hold back: 288 MiB."""
    if store.name == "strict":
        pytest.skip("the server behind the strict proxy is the embedded one")
    bucket = Bucket(replace(store.address, endpoint=f"http://127.0.0.1:{store.server.port}"), Impatient())
    upload = await bucket.upload(key, 48 << 20)
    async with asyncio.timeout(60):
        for number in (2, 3, 4, 5, 6, 7, 1):
            await upload.part(number, bytes([number]) * (48 << 20 if number < 7 else 1))
        await upload.complete()
    assert await bucket.get_range(key, (48 << 20) - 1, (48 << 20) + 1) == b"\x01\x02"
    await bucket.delete(key)
    await bucket.close()


async def test_parts_go_side_by_side(bucket: Bucket, store: ObjectStore, key: str) -> None:
    upload = await bucket.upload(key, PART)
    await asyncio.gather(*[upload.part(number, data) for number, data in enumerate(PARTS, 1)])
    await upload.complete()
    assert store.proxy.count("CreateMultipartUpload") == 1
    await _is_there(bucket, key, PARTS)


@pytest.mark.parametrize("parts", [[PARTS[0]], PARTS[:2], [PARTS[0], b"x"]])
async def test_the_last_part_may_be_whole_or_a_single_byte(bucket: Bucket, key: str, parts: list[bytes]) -> None:
    upload = await bucket.upload(key, PART)
    assert await _sent(upload, parts) == [True] * len(parts)
    await upload.complete()
    await _is_there(bucket, key, parts)


@pytest.mark.needs("multipart_etag")
async def test_the_etag_is_made_of_the_parts_sums(bucket: Bucket, store: ObjectStore, key: str) -> None:
    info = await (await bucket.upload(key, PART)).send(lambda: _numbered(PARTS))
    assert info.etag == multipart_etag(map(_md5, PARTS)) and info.etag.endswith("-3")
    assert store.proxy.count("GetObject") == 0


@pytest.mark.needs("listed_etag")
async def test_a_listing_has_the_same_etag(bucket: Bucket, key: str) -> None:
    await (await bucket.upload(key, PART)).send(lambda: _numbered(PARTS))
    assert [info.etag async for info in bucket.list(key)] == [multipart_etag(map(_md5, PARTS))]


@pytest.mark.parametrize("size", [0, 1, PART - 1])
async def test_less_than_a_part_is_put_whole_when_complete(
    bucket: Bucket, store: ObjectStore, key: str, size: int
) -> None:
    upload = await bucket.upload(key, PART, "audio/flac", {"session": "s-1"})
    await upload.part(1, b"an earlier try")
    await upload.part(1, data := _bytes(size))
    assert await bucket.head(key) is None and upload.state is None
    info = await upload.complete()
    assert info == ObjectInfo(size, _md5(data))
    assert (info.content_type, info.metadata) == ("audio/flac", {"session": "s-1"})
    assert [seen.operation for seen in store.proxy.seen] == ["HeadObject", "PutObject", "HeadObject"]


@pytest.mark.needs("replaces_parts")
async def test_a_part_sent_again_replaces(bucket: Bucket, store: ObjectStore, key: str) -> None:
    upload = await bucket.upload(key, PART)
    await _sent(upload, [PARTS[0], PARTS[0], PARTS[2]])
    assert await upload.part(2, PARTS[1])
    assert not await upload.part(2, PARTS[1])
    assert store.proxy.parts() == [1, 2, 3, 2]
    await upload.complete()
    await _is_there(bucket, key, PARTS)


@pytest.mark.parametrize(
    "fault", ["refuse", "drop", "lose_answer", pytest.param("spoil", marks=pytest.mark.needs("refuses_a_part_alone"))]
)
async def test_a_part_is_made_again_until_it_holds(bucket: Bucket, store: ObjectStore, key: str, fault: str) -> None:
    for operation in ("CreateMultipartUpload", "UploadPart"):
        getattr(store.proxy, "refuse" if operation.startswith("Create") else fault)(operation, 2)
    upload = await bucket.upload(key, PART)
    await asyncio.wait_for(_sent(upload, PARTS), DEADLINE_S)
    await upload.complete()
    assert store.proxy.parts() == [1, 1, 1, 2, 3]
    await _is_there(bucket, key, PARTS)


@pytest.mark.parametrize("fault", ["refuse", "drop", "lose_answer"])
async def test_completing_is_made_again_until_it_holds(
    bucket: Bucket, store: ObjectStore, key: str, fault: str
) -> None:
    upload = await bucket.upload(key, PART)
    await _sent(upload, PARTS)
    getattr(store.proxy, fault)("CompleteMultipartUpload", 2)
    info = await asyncio.wait_for(upload.complete(), DEADLINE_S)
    assert info.size_bytes == sum(map(len, PARTS))
    assert store.proxy.parts() == [1, 2, 3], "a lost answer is no lost upload"
    await _is_there(bucket, key, PARTS)


async def test_completing_may_be_given_up_and_asked_again(bucket: Bucket, store: ObjectStore, key: str) -> None:
    upload = await bucket.upload(key, PART)
    await _sent(upload, PARTS)
    store.proxy.slow("HeadObject", 1.0)
    given_up = asyncio.create_task(upload.complete())
    await until(lambda: store.proxy.count("HeadObject") == 1, DEADLINE_S)
    given_up.cancel()
    await asyncio.wait([given_up])
    assert (await upload.complete()).size_bytes == sum(map(len, PARTS))
    assert store.proxy.parts() == [1, 2, 3]


async def test_another_process_goes_on_from_the_parts_that_are_there(
    bucket: Bucket, store: ObjectStore, key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sinks.objects.upload._LISTED_MAX", 1)
    first = await bucket.upload(key, PART)
    await first.part(2, PARTS[1])
    await first.part(3, PARTS[2])
    assert first.state is not None
    state = UploadState(first.state.key, first.state.upload_id, first.state.part_bytes)
    store.proxy.reset()

    other = Bucket(store.address, Impatient(0.02, 0.2))
    upload = await other.upload(key, PART, resume=state)
    assert {number: part.md5 for number, part in upload.parts.items()} == {2: _md5(PARTS[1]), 3: _md5(PARTS[2])}
    assert await _sent(upload, PARTS) == [True, False, False]
    await upload.complete()
    await other.close()
    assert store.proxy.parts() == [1] and store.proxy.count("CreateMultipartUpload") == 0
    await _is_there(bucket, key, PARTS)


@pytest.mark.needs("replaces_parts")
async def test_of_resumed_parts_those_that_differ_are_sent(bucket: Bucket, store: ObjectStore, key: str) -> None:
    first = await bucket.upload(key, PART)
    await _sent(first, PARTS)
    upload = await bucket.upload(key, PART, resume=first.state)
    parts = [PARTS[0], _bytes(PART, 9), PARTS[2]]
    assert await _sent(upload, parts) == [False, True, False]
    await upload.complete()
    await _is_there(bucket, key, parts)


async def test_parts_that_differ_from_those_resumed_win(bucket: Bucket, store: ObjectStore, key: str) -> None:
    """Of a server that cannot replace a part, all are sent again."""
    first = await bucket.upload(key, PART)
    await _sent(first, PARTS)
    parts = [PARTS[0], _bytes(PART, 9), PARTS[2]]
    await (await bucket.upload(key, PART, resume=first.state)).send(lambda: _numbered(parts))
    assert [open_ async for open_ in bucket.list_uploads(key)] == []
    await _is_there(bucket, key, parts)


@pytest.mark.parametrize(
    "parts",
    [[PARTS[0], b"the end"], PARTS[:2], [b"short"]],
    ids=["fewer parts", "whole parts", "less than a part"],
)
async def test_of_a_longer_object_that_was_never_finished_nothing_is_kept(
    bucket: Bucket, key: str, parts: list[bytes]
) -> None:
    first = await bucket.upload(key, PART)
    await _sent(first, PARTS)
    await (await bucket.upload(key, PART, resume=first.state)).send(lambda: _numbered(parts))
    assert [open_ async for open_ in bucket.list_uploads(key)] == []
    await _is_there(bucket, key, parts)


@pytest.mark.parametrize("fault", ["refuse", "drop", "lose_answer", "spoil"])
async def test_sending_holds_through_faults_of_any_kind(
    bucket: Bucket, store: ObjectStore, key: str, fault: str
) -> None:
    for operation in ("CreateMultipartUpload", "UploadPart", "CompleteMultipartUpload", "HeadObject"):
        getattr(store.proxy, fault if operation == "UploadPart" or fault != "spoil" else "refuse")(operation, 2)
    await asyncio.wait_for((await bucket.upload(key, PART)).send(lambda: _numbered(PARTS)), DEADLINE_S)
    await _is_there(bucket, key, PARTS)


async def test_what_cannot_be_resumed_is_begun_anew(bucket: Bucket, store: ObjectStore, key: str) -> None:
    first = await bucket.upload(key, PART)
    await _sent(first, PARTS[:1])
    state = first.state
    await first.abort()
    upload = await bucket.upload(key, PART, "audio/flac", resume=state)
    assert upload.state is None and not upload.parts
    await _sent(upload, PARTS)
    assert (await upload.complete()).content_type == "audio/flac"
    await _is_there(bucket, key, PARTS)


async def test_parts_of_another_size_are_given_back(bucket: Bucket, key: str) -> None:
    first = await bucket.upload(key, PART)
    await _sent(first, PARTS[:1])
    parts = [_bytes(PART + 1_000, 5), PARTS[2]]
    upload = await bucket.upload(key, PART + 1_000, resume=first.state)
    assert [open_ async for open_ in bucket.list_uploads(key)] == []
    await _sent(upload, parts)
    await upload.complete()
    await _is_there(bucket, key, parts)


async def test_a_part_of_a_lost_upload_says_so_and_all_parts_may_be_sent_again(
    bucket: Bucket, store: ObjectStore, key: str
) -> None:
    upload = await bucket.upload(key, PART)
    await upload.part(1, PARTS[0])
    store.proxy.lose_upload("UploadPart")
    with pytest.raises(UploadLost, match=r"part 2 of .* must be sent again"):
        await upload.part(2, PARTS[1])
    assert upload.state is None and not upload.parts
    assert await _sent(upload, PARTS) == [True] * 3
    await upload.complete()
    await _is_there(bucket, key, PARTS)


async def test_of_parts_side_by_side_none_belongs_to_a_lost_upload(
    bucket: Bucket, store: ObjectStore, key: str
) -> None:
    upload = await bucket.upload(key, PART)
    await upload.part(1, PARTS[0])
    store.proxy.slow("UploadPart", 0.5)
    late = asyncio.create_task(upload.part(2, PARTS[1]))
    await until(lambda: store.proxy.count("UploadPart") == 2, DEADLINE_S)
    store.proxy.lose_upload("UploadPart")
    with pytest.raises(UploadLost):
        await upload.part(3, PARTS[2])
    await upload.part(1, PARTS[0])
    with pytest.raises(UploadLost):
        await late
    assert sorted(upload.parts) == [1]
    await _sent(upload, PARTS)
    await upload.complete()
    await _is_there(bucket, key, PARTS)


@pytest.mark.parametrize("at", ["UploadPart", "CompleteMultipartUpload"])
async def test_sending_starts_again_when_the_upload_is_lost(
    bucket: Bucket, store: ObjectStore, key: str, at: str
) -> None:
    store.proxy.lose_upload(at)
    await (await bucket.upload(key, PART)).send(lambda: _numbered(PARTS))
    assert store.proxy.count("CreateMultipartUpload") == 2
    await _is_there(bucket, key, PARTS)


async def test_sending_does_not_start_again_for_ever(bucket: Bucket, store: ObjectStore, key: str) -> None:
    for _ in range(2):
        store.proxy.lose_upload("UploadPart")
    with pytest.raises(UploadLost):
        await (await bucket.upload(key, PART)).send(lambda: _numbered(PARTS), restarts_max=1)


async def test_an_upload_goes_on_or_starts_again_after_a_crash_of_the_store(
    bucket: Bucket, store: ObjectStore, key: str
) -> None:
    crashed: list[int] = []

    async def parts() -> AsyncIterator[tuple[int, bytes]]:
        async for number, data in _numbered(PARTS):
            if number == 3 and not crashed:
                crashed.append(number)
                await asyncio.to_thread(store.server.kill)
                await asyncio.to_thread(store.server.start)
            yield number, data

    await asyncio.wait_for((await bucket.upload(key, PART)).send(parts), DEADLINE_S)
    await _is_there(bucket, key, PARTS)


@pytest.mark.needs("survives_restart")
async def test_an_open_upload_outlives_a_restart(bucket: Bucket, store: ObjectStore, key: str) -> None:
    first = await bucket.upload(key, PART)
    await _sent(first, PARTS[:2])
    store.server.kill()
    store.server.start()
    upload = await bucket.upload(key, PART, resume=first.state)
    assert sorted(upload.parts) == [1, 2]


async def test_an_older_object_is_not_taken_for_the_new_one(bucket: Bucket, store: ObjectStore, key: str) -> None:
    await (await bucket.upload(key, PART)).send(lambda: _numbered(PARTS))
    upload = await bucket.upload(key, PART)
    await _sent(upload, [PARTS[1], PARTS[0], PARTS[2]])
    store.proxy.lose_upload("CompleteMultipartUpload")
    with pytest.raises(UploadLost, match="complete"):
        await upload.complete()
    await _is_there(bucket, key, PARTS)


async def test_completing_notices_what_the_store_made_of_the_parts(
    bucket: Bucket, store: ObjectStore, key: str
) -> None:
    damaged = _bytes(sum(map(len, PARTS)), 7)
    raw = store.raw(store.proxy.url)
    store.proxy.then("CompleteMultipartUpload", lambda: raw.put_object(Bucket="sluiceway", Key=key, Body=damaged))
    upload = await bucket.upload(key, PART)
    await _sent(upload, PARTS)
    with pytest.raises(SinkMismatch, match=rf"sum {multipart_etag(map(_md5, PARTS))} .* sum {_md5(damaged)}"):
        await upload.complete()
    assert await _sent(upload, PARTS) == [True] * 3, "what was sent must not count any more"


async def test_parts_that_make_no_object_are_refused_before_they_are_sent(
    bucket: Bucket, store: ObjectStore, key: str
) -> None:
    upload = await bucket.upload(key, PART)
    wrong = [(0, b"x"), (-1, b"x"), (PARTS_MAX + 1, b"x"), (1, _bytes(PART + 1)), (2, b"")]
    for number, data in wrong:
        with pytest.raises(SinkRefused, match=f"part {number}|part {number:,}"):
            await upload.part(number, data)
    with pytest.raises(SinkRefused, match="it has no part"):
        await upload.complete()
    assert store.proxy.seen == []


@pytest.mark.parametrize(
    ("parts", "fault"),
    [
        ({1: PARTS[0], 3: PARTS[2]}, "of 3 parts 2 is missing"),
        ({2: PARTS[1], 3: PARTS[2]}, "of 3 parts 1 is missing"),
        ({1: PARTS[0], 2: PARTS[2], 3: PARTS[1]}, "part 2 of 3 has 1,000,003 bytes and not 5,242,880"),
    ],
)
async def test_no_object_is_made_of_parts_that_r2_would_refuse(
    bucket: Bucket, store: ObjectStore, key: str, parts: dict[int, bytes], fault: str
) -> None:
    upload = await bucket.upload(key, PART)
    for number, data in parts.items():
        await upload.part(number, data)
    with pytest.raises(SinkRefused, match=fault):
        await upload.complete()
    assert store.proxy.count("CompleteMultipartUpload") == 0
    await upload.abort()


@pytest.mark.parametrize("part_bytes", [PART_BYTES_MIN - 1, PART_BYTES_MAX + 1])
async def test_a_part_size_that_r2_refuses_is_no_upload(bucket: Bucket, key: str, part_bytes: int) -> None:
    with pytest.raises(ValueError, match="5,242,880 to 5,368,709,120"):
        await bucket.upload(key, part_bytes)


async def test_what_is_aborted_leaves_nothing(bucket: Bucket, key: str) -> None:
    upload = await bucket.upload(key, PART)
    await _sent(upload, PARTS)
    await upload.abort()
    await upload.abort()
    assert [open_ async for open_ in bucket.list_uploads(key)] == []
    assert await bucket.head(key) is None


async def test_abandoned_uploads_are_listed_by_age_and_aborted(bucket: Bucket, store: ObjectStore, key: str) -> None:
    keys = [f"{key}/{number}" for number in range(5)]
    uploads = [await bucket.upload(one, PART) for one in [*keys, f"{key} beside"]]
    for upload in uploads:
        await upload.part(2, b"x")
    await asyncio.sleep(3.5)
    recent = await bucket.upload(f"{key}/recent", PART)
    await recent.part(2, b"x")
    store.proxy.refuse("ListMultipartUploads")
    found = {open_.key: open_ async for open_ in bucket.list_uploads(f"{key}/")}
    assert sorted(found) == [*keys, recent.key]
    assert found[keys[0]].upload_id == (uploads[0].state and uploads[0].state.upload_id)
    # Servers give whole seconds, and one of them as its clock stood up to a second ago.
    assert 1.4 <= found[keys[0]].age_s <= DEADLINE_S and found[recent.key].age_s < found[keys[0]].age_s
    aborted = await bucket.abort_uploads(f"{key}/", older_than_s=found[recent.key].age_s + 0.9)
    assert sorted(open_.key for open_ in aborted) == keys
    assert [open_.key async for open_ in bucket.list_uploads(key)] == [f"{key} beside", recent.key]


@pytest.mark.needs("pages_uploads")
async def test_uploads_are_listed_page_by_page(bucket: Bucket, store: ObjectStore, key: str) -> None:
    keys = [f"{key}/{number}" for number in (0, 1, 1, 2, 3)]
    uploads = [await bucket.upload(one, PART) for one in keys]
    for upload in uploads:
        await upload.part(2, b"x")
    found = [(open_.key, open_.upload_id) async for open_ in bucket.list_uploads(f"{key}/", page=2)]
    assert sorted(found) == sorted((upload.key, upload.state.upload_id) for upload in uploads if upload.state)
    assert store.proxy.count("ListMultipartUploads") == 3
