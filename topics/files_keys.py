"""The keys of files in the bucket, and file names that are safe in them. Pure."""

from __future__ import annotations

import hashlib
import unicodedata

#: Bytes of UTF-8 that a file name keeps: with its prefix a key stays far below S3's 1,024.
NAME_BYTES_MAX = 180
CONVERTED = "converted/"
UPLOADS = "uploads/"

# Quotes and separators break headers and shells, `%`, `#` and `?` break URLs that are quoted once too little or too often.
_UNSAFE = frozenset("\"'`<>|:*?%#&;$\\/")


def safe_file_name(text: str) -> str:
    """`text` as one path part: letters of any script are kept (NFC); folders, quotes, control and invisible characters go.

    At most NAME_BYTES_MAX bytes, of which the extension is kept. `file` if nothing is left.
    """
    name = unicodedata.normalize("NFC", text).replace("\\", "/").rstrip("/").rpartition("/")[2]
    # Categories C*: controls, bidirectional overrides, surrogates, unassigned. Z*: every kind of space.
    kept = (character for character in name if unicodedata.category(character)[0] != "C" or character in "\t\n\r")
    cleaned = "".join("_" if _is_space(character) or character in _UNSAFE else character for character in kept)
    stem, dot, extension = cleaned.strip("._-").rpartition(".")
    if not dot or len(extension.encode()) > 16:
        stem, dot, extension = cleaned.strip("._-"), "", ""
    return _cut(stem, NAME_BYTES_MAX - len(f"{dot}{extension}".encode())) + dot + extension or "file"


def renamed(file_name: str, extension: str) -> str:
    """A safe file name with another extension (without its dot)."""
    stem, dot, _ = safe_file_name(file_name).rpartition(".")
    return safe_file_name(f"{stem if dot else file_name}.{extension}")


def converted_key(submitted_ms: int, job_id: str, term: int, attempt: int, file_name: str) -> str:
    """Where an attempt's result goes: a replay names the same key, another attempt another one."""
    random = hashlib.sha256(f"{job_id}/{term}.{attempt}".encode()).hexdigest()[:12]
    return f"{CONVERTED}{submitted_ms}_{random}_{safe_file_name(file_name)}"


def converted_name(key: str) -> str:
    """The file name in a key that `converted_key` made."""
    return key.removeprefix(CONVERTED).split("_", 2)[2]


def upload_key(upload_id: str, file_name: str) -> str:
    """Where a client's own upload lies."""
    return f"{UPLOADS}{upload_id}/{safe_file_name(file_name)}"


def _is_space(character: str) -> bool:
    return character in "\t\n\r" or unicodedata.category(character)[0] == "Z"


def _cut(text: str, size: int) -> str:
    return text.encode()[: max(0, size)].decode(errors="ignore")
