"""Dead letters as records: the headers a letter carries, what was replayed of it, and which can be replayed at all.

A letter is its record's key, bytes and headers, with headers of its own before them. A record's own headers of such names are
marked by a prefix, so that the record can be given back as it was. A replayed record carries one header more, `replay`: which
letter it comes from and how often it has died. A letter of such a record counts on from there.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import NamedTuple

import msgspec

from topics.headers import Headers, header
from topics.rerouting import REROUTED

#: The header of a replayed record; see `Replay`.
REPLAY = "replay"
_OWN_NAMES = (
    "reason",
    "error",
    "source_topic",
    "source_partition",
    "source_offset",
    "attempts",
    "replay_of",
    "object",
    "key_bytes_left_out",
    "headers_left_out",
)
_MARK = "original_"
_MARKED = re.compile(rf"(?:{_MARK})+(?:{'|'.join(_OWN_NAMES)})")
_ID = re.compile(r"([A-Za-z0-9._-]+)/([0-9]{1,9})/([0-9]{1,18})")
_DEADLETTER = ".deadletter.v1"
#: Where the object store keeps the bytes of letters, and nothing else.
OBJECTS = "deadletters/"
#: What letters of these reasons hold is no record, and why that is so.
_NO_RECORDS = {
    "unreadable": "it holds a whole batch of the log that no client can decode, not a record",
    "unrecorded": "it tells of a recording that could not be made of what was stored, and holds no record",
}
#: Letters of these reasons ask for what else the source topic holds, from their source offset on.
_NEED_THE_LOG = frozenset({"segment_failed"})


class LetterId(NamedTuple):
    """Where a letter lies; written topic/partition/offset."""

    topic: str
    partition: int
    offset: int

    def __str__(self) -> str:
        return f"{self.topic}/{self.partition}/{self.offset}"


class Replay(msgspec.Struct, frozen=True):
    """The header of a replayed record: its letter, how often the record has died, and the number of this replay of it."""

    letter: str
    attempts: int
    times: int


@dataclass(frozen=True, slots=True)
class Letter:
    """One dead letter. `key`, `value` and `headers` are the record's own; of an oversized one the value lies in the object
    store under `object_key`, and `left_out` says what of it was not kept. `replay_of` is the letter from whose replay it
    comes."""

    id: LetterId
    written_ms: int
    key: bytes | None
    value: bytes | None
    headers: Headers
    reason: str
    error: str
    producer: str
    source_topic: str
    source_partition: int
    source_offset: int
    attempts: int
    replay_of: str
    object_key: str
    left_out: str

    @property
    def stream(self) -> str:
        """The stream that it is of."""
        return self.id.topic.removesuffix(_DEADLETTER)

    @property
    def no_record(self) -> str:
        """Why it can never be replayed, or an empty string."""
        if not self.source_topic.startswith(f"{self.stream}.") or self.source_topic == self.id.topic:
            return f"it does not say of which record of {self.stream} it is"
        if self.left_out:
            return f"its record was too large to be kept whole: {self.left_out}"
        if self.object_key and not self.owns_object:
            return f"its bytes are said to lie in {self.object_key}, where no dead letter's bytes are kept"
        return _NO_RECORDS.get(self.reason, "")

    @property
    def owns_object(self) -> bool:
        """Whether it has an object of its own. The header is anybody's who may write to the topic."""
        return self.object_key.startswith(OBJECTS)

    @property
    def needs_log(self) -> bool:
        """Whether a replay reads the source topic from the letter's source offset on."""
        return self.reason in _NEED_THE_LOG


def deadletter_topic(stream: str) -> str:
    """The dead-letter topic of a stream."""
    return stream + _DEADLETTER


def parse_id(text: str) -> LetterId | None:
    """The id in a text, or None."""
    found = _ID.fullmatch(text)
    return LetterId(found[1], int(found[2]), int(found[3])) if found else None


def read_replay(headers: Headers) -> Replay | None:
    """What a record says of its replay; None for a record that was not replayed, or says it in another way than ours."""
    try:
        return msgspec.json.decode(header(headers, REPLAY) or b"", type=Replay)
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        return None


def replayed_headers(letter: Letter, times: int) -> Headers:
    """The headers of a letter's record when it is replayed for the `times`th time: it may be sent on once more, too."""
    replay = Replay(str(letter.id), letter.attempts, times)
    return [*(h for h in letter.headers if h[0] != REROUTED), (REPLAY, msgspec.json.encode(replay))]


def marked(headers: Headers) -> Headers:
    """A record's headers within a letter: those of our names are marked, and that of its replay is told otherwise."""
    theirs = headers if read_replay(headers) is None else [h for h in headers if h[0] != REPLAY]
    return [(_MARK + name if name in _OWN_NAMES or _MARKED.fullmatch(name) else name, value) for name, value in theirs]


def read_letter(id: LetterId, written_ms: int, key: bytes | None, value: bytes | None, headers: Headers) -> Letter:
    """A record of a dead-letter topic. Total: what another program wrote there has no reason and no source."""
    left_out = [
        f"{_text(headers, name)} {what}"
        for name, what in (("key_bytes_left_out", "bytes of its key"), ("headers_left_out", "of its headers"))
        if header(headers, name) is not None
    ]
    return Letter(
        id=id,
        written_ms=written_ms,
        key=key,
        value=value,
        headers=[
            (name.removeprefix(_MARK) if _MARKED.fullmatch(name) else name, found)
            for name, found in headers
            if name not in _OWN_NAMES
        ],
        reason=_text(headers, "reason"),
        error=_text(headers, "error"),
        producer=producer_of(headers),
        source_topic=_text(headers, "source_topic"),
        source_partition=_number(headers, "source_partition"),
        source_offset=_number(headers, "source_offset"),
        attempts=max(1, _number(headers, "attempts")),
        replay_of=_text(headers, "replay_of"),
        object_key=_text(headers, "object"),
        left_out=" and ".join(left_out) + " are missing" if left_out else "",
    )


def producer_of(headers: Headers) -> str:
    """The sending service's name as figures and rows have it, empty for none."""
    return _text(headers, "producer")[:128]


def _text(headers: Headers, name: str) -> str:
    return (header(headers, name) or b"").decode("utf-8", "replace")


def _number(headers: Headers, name: str) -> int:
    text = _text(headers, name)
    return int(text) if re.fullmatch(r"[0-9]{1,18}", text) else 0
