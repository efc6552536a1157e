"""Path templates: ids in a path become `{id}`, so that requests for one resource type count as one path.

A segment between slashes is an id when it is
- all digits (`42`; years too), a UUID, or 16 or more hex digits;
- a token: 20 or more of `A-Za-z0-9_-`, where a piece between `-` and `_` mixes letters and digits and is 16 or more
  long, or 8 or more long with at least three changes between the two.
All else stays: words and slugs (`puppet-conference-2012`), versions (`v2`), dates (`2024-05-01`: few, and meant to be
read), custom verbs (`docs:batchGet`), anything with a dot (`logo-1234.png`, `1.2.3`), any other character.
"""

from __future__ import annotations

import re

_ID = re.compile(r"[0-9]+|[0-9A-Fa-f]{16,}|[0-9A-Fa-f]{8}(?:-[0-9A-Fa-f]{4}){3}-[0-9A-Fa-f]{12}")
_TOKEN = re.compile(r"[A-Za-z0-9_-]{20,}")
_ALIKE = re.compile(r"[0-9]+|[A-Za-z]+")


def template(path: str) -> str:
    """The path with each id segment replaced by `{id}`; total for any text, and its own templates stay as they are."""
    return "/".join("{id}" if _is_id(segment) else segment for segment in path.split("/"))


def _is_id(segment: str) -> bool:
    if _ID.fullmatch(segment):
        return True
    return _TOKEN.fullmatch(segment) is not None and any(map(_is_opaque, re.split("[-_]", segment)))


def _is_opaque(piece: str) -> bool:
    """Whether a piece of a token is no word: slugs hold years and names like `ec2` and `base64encoder`."""
    changes = len(_ALIKE.findall(piece)) - 1
    return (len(piece) >= 16 and changes >= 1) or (len(piece) >= 8 and changes >= 3)
