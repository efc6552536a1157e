"""The S3 servers that the object sink is held to, each behind a proxy that can fail, and what each is known to lack."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import boto3
from botocore.config import Config

from compose.local.process import free_port
from compose.local.s3 import S3
from compose.local.server import Server
from sinks.backoff import Backoff
from sinks.objects import BucketAddress
from tests.r2proxy import R2Proxy
from tests.versitygw import VersityGW

_RCLONE_RESTART = "rclone keeps metadata and open uploads in memory, and forgets them at a restart"
_RCLONE_STREAM = "rclone writes parts to a file as they come, and cannot replace one with other bytes"
_RCLONE_RANGE = "rclone answers a range with status 200, though with the range's bytes and its Content-Range"
_RCLONE_CORS = "rclone sets no rules for a bucket: it lets every origin in, and a URL's signature says what it may do"
_RCLONE_LISTING = "rclone lists the MD5 of the whole as the ETag of an object made of parts"

# What a server lacks, by what a test needs. A test that needs it must fail there: a gap that closes is noticed.
GAPS: Mapping[str, Mapping[str, str]] = {
    # `rclone serve s3`, as `make demo` and `sluiceway up` run it.
    "embedded": {
        "multipart_etag": "rclone answers HEAD of an object made of parts with the MD5 of the whole; it is read back",
        "listed_etag": _RCLONE_LISTING,
        "range_status": _RCLONE_RANGE,
        "cors_rules": _RCLONE_CORS,
        "survives_restart": _RCLONE_RESTART,
        "replaces_parts": _RCLONE_STREAM,
        "refuses_a_part_alone": "rclone fails the whole upload when the sum of one part is wrong",
        "refuses_short_parts": "rclone takes parts of any size",
        "refuses_unequal_parts": "rclone takes parts of any size",
        "refuses_crc": "rclone takes CRC headers",
    },
    "versitygw": {
        "pages_uploads": "versitygw refuses the upload id marker that it gave with the page before",
        "refuses_unequal_parts": "only R2 wants equal parts; versitygw takes what S3 takes",
        "refuses_crc": "versitygw takes CRC headers, as S3 does",
    },
    # The proxy that refuses what R2 refuses, before `rclone serve s3`.
    "strict": {
        "range_status": _RCLONE_RANGE,
        "cors_rules": _RCLONE_CORS,
        "listed_etag": f"{_RCLONE_LISTING}; the proxy corrects answers to HEAD and GET only",
        "survives_restart": _RCLONE_RESTART,
        "replaces_parts": _RCLONE_STREAM,
    },
}


@dataclass(frozen=True)
class ObjectStore:
    """A server under test. Requests go through `proxy`; `raw` is a client that goes round it."""

    name: str
    server: Server
    proxy: R2Proxy

    @property
    def address(self) -> BucketAddress:
        """The bucket, behind the proxy."""
        return BucketAddress(self.proxy.url, "sluiceway", "sluiceway", "sluiceway-secret", connect_timeout_s=2.0)

    def raw(self, url: str = "") -> Any:
        """A plain boto3 client of the server itself, or of another URL."""
        return boto3.client(
            "s3",
            endpoint_url=url or f"http://127.0.0.1:{self.server.port}",
            region_name="auto",
            aws_access_key_id="sluiceway",
            aws_secret_access_key="sluiceway-secret",
            config=Config(
                signature_version="s3v4",
                s3={"addressing_style": "path"},
                request_checksum_calculation="when_required",
                retries={"mode": "standard", "total_max_attempts": 1},
            ),
        )


class Impatient(Backoff):
    """A test that waits without end fails instead."""

    def delay_s(self, attempt: int) -> float:
        assert attempt < 150, "the store never answers what is wanted"
        return super().delay_s(attempt)


@contextmanager
def embedded(folder: Path) -> Iterator[ObjectStore]:
    """The server of the local stack."""
    with _running("embedded", S3(folder, free_port())) as store:
        yield store


@contextmanager
def strict(folder: Path) -> Iterator[ObjectStore]:
    """The server of the local stack behind R2's rules."""
    with _running("strict", S3(folder, free_port())) as store:
        yield store


@contextmanager
def versitygw(folder: Path, binary: Path) -> Iterator[ObjectStore]:
    """versitygw over a folder."""
    with _running("versitygw", VersityGW(binary, folder, free_port())) as store:
        yield store


@contextmanager
def _running(name: str, server: Server) -> Iterator[ObjectStore]:
    server.start()
    try:
        with R2Proxy(server.port, strict=name == "strict") as proxy:
            yield ObjectStore(name, server, proxy)
    finally:
        server.stop()
