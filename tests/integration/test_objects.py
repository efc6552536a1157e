"""The object sink: whole objects survive outages and lost answers, and the client is one that R2 takes."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator
from typing import Any

import pytest

from compose.local.stack import LocalStack
from sinks.backoff import Backoff
from sinks.errors import SinkRefused
from sinks.objects import Bucket, BucketAddress, ObjectInfo
from tests.faults import FaultProxy

DEADLINE_S = 20.0


def _address(endpoint: str, **others: Any) -> BucketAddress:
    return BucketAddress(endpoint, **{"bucket": "sluiceway", "access_key": "k", "secret_key": "s", **others})


@pytest.fixture
async def faulty(stack: LocalStack) -> AsyncIterator[tuple[Bucket, FaultProxy]]:
    """The local bucket behind a proxy that can fail."""
    settings = stack.settings()
    with FaultProxy(stack.s3.port) as proxy:
        address = BucketAddress(
            proxy.url, settings.s3_bucket, settings.s3_access_key, settings.s3_secret_key, connect_timeout_s=2.0
        )
        bucket = Bucket(address, Backoff(0.05, 0.2))
        yield bucket, proxy
        await bucket.close()


async def _until_down(bucket: Bucket) -> None:
    async with asyncio.timeout(DEADLINE_S):
        while bucket.available:  # noqa: ASYNC110 - availability has no event
            await asyncio.sleep(0.02)


@pytest.mark.stack
async def test_an_object_reads_back_as_written(faulty: tuple[Bucket, FaultProxy]) -> None:
    bucket, _ = faulty
    data = bytes(range(256)) * 8_000
    await bucket.put("deadletters/traffic.events.v1/0/ü 7+%2F", data)
    assert await bucket.get("deadletters/traffic.events.v1/0/ü 7+%2F") == data
    info = await bucket.head("deadletters/traffic.events.v1/0/ü 7+%2F")
    assert info == ObjectInfo(len(data), hashlib.md5(data).hexdigest())


@pytest.mark.stack
async def test_the_same_key_again_replaces(faulty: tuple[Bucket, FaultProxy]) -> None:
    bucket, _ = faulty
    await bucket.put("again", b"first")
    await bucket.put("again", b"second")
    assert await bucket.get("again") == b"second"


@pytest.mark.stack
async def test_what_is_not_there_is_none(faulty: tuple[Bucket, FaultProxy]) -> None:
    bucket, _ = faulty
    assert await bucket.get("no/such/key") is None
    assert await bucket.head("no/such/key") is None


@pytest.mark.stack
async def test_a_store_that_refuses_is_waited_for(faulty: tuple[Bucket, FaultProxy]) -> None:
    bucket, proxy = faulty
    proxy.refuse()
    waiting = asyncio.create_task(bucket.put("later", b"data"))
    await _until_down(bucket)
    assert not waiting.done()
    proxy.serve()
    await asyncio.wait_for(waiting, DEADLINE_S)
    assert bucket.available and await bucket.get("later") == b"data"


@pytest.mark.stack
async def test_a_cut_put_is_made_again(faulty: tuple[Bucket, FaultProxy]) -> None:
    bucket, proxy = faulty
    data = b"x" * 300_000
    proxy.cut_requests(100_000, times=2, marker=b"PUT")
    await bucket.put("cut", data)
    proxy.cut_answers(times=2, marker=b"PUT")
    await bucket.put("unanswered", data)
    assert proxy.cuts == 4
    assert [await bucket.get("cut"), await bucket.get("unanswered")] == [data, data]


@pytest.mark.stack
async def test_a_cut_answer_is_never_taken_for_an_object(faulty: tuple[Bucket, FaultProxy]) -> None:
    bucket, proxy = faulty
    data = b"y" * 300_000
    await bucket.put("whole", data)
    proxy.cut_answers(100_000, times=2, marker=b"GET")
    assert await bucket.get("whole") == data
    assert proxy.cuts == 2


@pytest.mark.stack
async def test_a_request_that_can_never_succeed_is_refused(faulty: tuple[Bucket, FaultProxy]) -> None:
    bucket, _ = faulty
    with pytest.raises(SinkRefused, match="put sluiceway/"):
        await asyncio.wait_for(bucket.put("", b"data"), DEADLINE_S)


async def test_the_client_is_one_that_r2_takes() -> None:
    """Over plain http no trailer is ever sent, so that no local server could tell; hence the configuration itself."""
    bucket = Bucket(_address("https://account.r2.cloudflarestorage.com"))
    config = bucket._client.meta.config
    assert config.request_checksum_calculation == "when_required"
    assert config.response_checksum_validation == "when_required"
    assert config.signature_version == "s3v4"
    assert config.region_name == "auto"
    await bucket.close()


async def test_a_put_over_https_carries_its_md5_and_no_trailer() -> None:
    bucket = Bucket(_address("https://account.r2.cloudflarestorage.com"))
    sent: list[Any] = []

    def capture(request: Any, **_: Any) -> None:
        sent.append(request)
        raise ConnectionError("not sent")

    bucket._client.meta.events.register("before-send.s3.PutObject", capture)
    waiting = asyncio.create_task(bucket.put("a", b"data"))
    await _until_down(bucket)
    waiting.cancel()
    headers = {name.lower(): value for name, value in sent[0].headers.items()}
    md5 = headers["content-md5"]
    assert (md5.decode() if isinstance(md5, bytes) else md5) == "jXd/OF09/siBXSD3SWAm3A=="
    assert not [name for name in headers if "trailer" in name or "checksum" in name or "crc" in name]
    await bucket.close()
