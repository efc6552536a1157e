"""The boto3 client that R2 takes, and where its bucket is."""

from __future__ import annotations

import functools
from dataclasses import dataclass, field
from typing import Any

import boto3
from botocore.config import Config

from sinks.objects.parts import content_md5, md5_hex

CONNECTIONS = 8


@dataclass(frozen=True)
class BucketAddress:
    """Where the bucket is, and the key pair that opens it. R2 wants the region `auto`."""

    endpoint: str
    bucket: str
    access_key: str
    secret_key: str = field(repr=False)
    region: str = "auto"
    connect_timeout_s: float = 5.0
    read_timeout_s: float = 60.0


def s3_client(address: BucketAddress) -> Any:
    """A client that R2 takes: SigV4, and no CRC trailers, which boto3 would else send over https and R2 has refused."""
    client = _session().client(
        "s3",
        endpoint_url=address.endpoint,
        region_name=address.region,
        aws_access_key_id=address.access_key,
        aws_secret_access_key=address.secret_key,
        config=Config(
            signature_version="s3v4",
            request_checksum_calculation="when_required",
            response_checksum_validation="when_required",
            s3={"addressing_style": "path"},
            retries={"mode": "standard", "total_max_attempts": 1},
            max_pool_connections=CONNECTIONS,
            connect_timeout=address.connect_timeout_s,
            read_timeout=address.read_timeout_s,
        ),
    )
    client.meta.events.register("before-call.s3.DeleteObjects", _md5_for_crc)
    return client


@functools.cache
def _session() -> Any:
    # It holds S3's description, which takes a third of a second to read.
    return boto3.session.Session()


def _md5_for_crc(params: dict[str, Any], **_: Any) -> None:
    """DeleteObjects must carry a checksum. boto3's is a CRC-32, which not every store knows; every store knows MD5."""
    params["headers"]["Content-MD5"] = content_md5(md5_hex(params["body"]))
    params["context"].pop("checksum", None)
