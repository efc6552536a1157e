"""The clients of ClickHouse and of the bucket as the settings have them."""

from __future__ import annotations

from compose.settings import Settings
from sinks.clickhouse.connection import Server
from sinks.clickhouse.sink import ClickHouseSink
from sinks.objects import Bucket, BucketAddress
from sinks.presign import Presigner, PublicDomain


def clickhouse(settings: Settings) -> ClickHouseSink:
    """The ClickHouse sink; made inside a running event loop."""
    return ClickHouseSink(
        Server(
            settings.clickhouse_url,
            user=settings.clickhouse_user,
            password=settings.clickhouse_password,
            database=settings.clickhouse_database,
        )
    )


def bucket_address(settings: Settings) -> BucketAddress:
    """Where the bucket of all objects is, and its keys."""
    return BucketAddress(
        settings.s3_endpoint,
        settings.s3_bucket,
        settings.s3_access_key,
        settings.s3_secret_key,
        settings.s3_region,
    )


def bucket(settings: Settings) -> Bucket:
    """The bucket of all objects; made inside a running event loop."""
    return Bucket(bucket_address(settings))


def presigner(settings: Settings, objects: Bucket) -> Presigner:
    """What signs URLs of the bucket; links go to the public domain where the settings name one."""
    domain = PublicDomain(settings.public_base_url, settings.public_link_secret) if settings.public_base_url else None
    return Presigner(objects, domain)
