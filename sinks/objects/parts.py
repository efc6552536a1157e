"""The arithmetic of multipart objects, and R2's rule for their parts. Pure.

R2 takes at most 10,000 parts of 5 MiB to 5 GiB, all of one size but the last, which may be smaller:
https://developers.cloudflare.com/r2/objects/multipart-objects/#limitations
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable, Mapping

from sinks.objects.records import Part

PART_BYTES_MIN = 5 << 20
PART_BYTES_MAX = 5 << 30
PARTS_MAX = 10_000
_MIB = 1 << 20


def md5_hex(data: bytes) -> str:
    """The MD5 of `data` as an ETag has it."""
    return hashlib.md5(data, usedforsecurity=False).hexdigest()


def content_md5(md5: str) -> str:
    """A Content-MD5 header (RFC 1864) of a sum in hex."""
    return base64.b64encode(bytes.fromhex(md5)).decode()


def multipart_etag(md5s: Iterable[str]) -> str:
    """The ETag of an object whose parts have these MD5s, in their order: the MD5 of the binary sums, then `-N`."""
    sums = [bytes.fromhex(md5) for md5 in md5s]
    return f"{md5_hex(b''.join(sums))}-{len(sums)}"


def part_bytes_for(size_bytes: int, least: int = PART_BYTES_MIN) -> int:
    """A size of parts, `least` or more and whole MiB, of which 10,000 hold `size_bytes`."""
    needed = -(-size_bytes // PARTS_MAX)
    return -(-max(least, needed, PART_BYTES_MIN) // _MIB) * _MIB


def fault_of_part(number: int, size_bytes: int, part_bytes: int) -> str | None:
    """Why a part can never be one of an upload of `part_bytes` a part; None if it can."""
    if not 1 <= number <= PARTS_MAX:
        return f"part {number:,} is not one of 1 to {PARTS_MAX:,}; take larger parts (part_bytes_for)"
    if size_bytes > part_bytes:
        return f"part {number} has {size_bytes:,} bytes, more than the {part_bytes:,} of a part"
    if size_bytes == 0 and number > 1:
        return f"part {number} is empty"
    return None


def fault_of_parts(parts: Mapping[int, Part], part_bytes: int) -> str | None:
    """Why these parts make no object: one is missing, or one but the last is short; None if they do."""
    if not parts:
        return "it has no part"
    last = max(parts)
    if missing := sorted(set(range(1, last + 1)) - parts.keys()):
        return f"of {last} parts {', '.join(map(str, missing[:5]))} {'are' if len(missing) > 1 else 'is'} missing"
    for number in range(1, last):
        if parts[number].size_bytes != part_bytes:
            return f"part {number} of {last} has {parts[number].size_bytes:,} bytes and not {part_bytes:,}"
    return None
