"""One bucket of an S3 store (R2, or any other): objects whole and in parts, checked on the way and at rest.

`Bucket` is all that callers make. Each of its requests is made again, with backoff, for as long as the store is away.
"""

from sinks.objects.bucket import Bucket
from sinks.objects.client import BucketAddress
from sinks.objects.parts import PART_BYTES_MAX, PART_BYTES_MIN, PARTS_MAX, multipart_etag, part_bytes_for
from sinks.objects.records import ObjectInfo, OpenUpload, Part, UploadState
from sinks.objects.upload import Upload, UploadLost
from sinks.objects.whole import ObjectChanged, ObjectMissing

__all__ = [
    "PARTS_MAX",
    "PART_BYTES_MAX",
    "PART_BYTES_MIN",
    "Bucket",
    "BucketAddress",
    "ObjectChanged",
    "ObjectInfo",
    "ObjectMissing",
    "OpenUpload",
    "Part",
    "Upload",
    "UploadLost",
    "UploadState",
    "multipart_etag",
    "part_bytes_for",
]
