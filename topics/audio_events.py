"""What happened to audio sessions: the events of `audio.segments.v1`, the manifest, and the keys of their objects."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import msgspec
from msgspec import Meta

from topics.audio import Format, Open, Store, Tier
from topics.malformed import Malformed, decoded

_Count = Annotated[int, Meta(ge=0)]
#: First and last seq, both included.
SeqRange = tuple[_Count, _Count]


class ClosedBy(StrEnum):
    """What ended a session: the client's word, 10 minutes of silence, or a refusal after it was open."""

    CLIENT = "client"
    SILENCE = "silence"
    REFUSAL = "refusal"


class _Event(msgspec.Struct, frozen=True, tag_field="type", kw_only=True):
    """`source_offset` is that of the record that brought it about; the record's key is the session's id."""

    session_id: str
    source_partition: _Count
    source_offset: _Count


class SessionOpened(_Event, frozen=True, tag="session_opened", kw_only=True, omit_defaults=True):
    """The owner has admitted a session. `opened_ms` is the open record's append time, `connection` a gateway's name for it."""

    user: str
    format: Format
    rate: int
    channels: int
    tier: Tier
    store: Store
    opened_ms: _Count
    connection: str | None = None


class SessionResumed(_Event, frozen=True, tag="session_resumed", kw_only=True):
    """A gateway's connection has opened a session that was open already: it takes over from those before it."""

    connection: str


class SessionRefused(_Event, frozen=True, tag="session_refused", kw_only=True):
    """The owner has not admitted a session; `code` is a label of few values."""

    user: str
    code: str
    message: str


class SegmentStored(_Event, frozen=True, tag="segment_stored", kw_only=True):
    """A range of chunks rests in the object store. `stored_seq`: all of the session up to there does, or is a gap;
    None while its first chunks do not.

    `md5` is that of the object's bytes, in hex; `first_offset` that of the lowest record in it.
    """

    first_seq: _Count
    last_seq: _Count
    stored_seq: _Count | None
    key: str
    size_bytes: _Count
    md5: str
    duration_ms: _Count
    first_offset: _Count


class SegmentFailed(_Event, frozen=True, tag="segment_failed", kw_only=True):
    """A range of chunks could not be stored; also the value of its dead letter, from which it is replayed.

    Its records lie within `first_offset` to `source_offset`.
    """

    first_seq: _Count
    last_seq: _Count
    first_offset: _Count
    attempts: _Count
    error: str


class SessionClosed(_Event, frozen=True, tag="session_closed", kw_only=True):
    """A session is over. `recording` is its object's key and `md5` its manifest's; a session without audio has neither."""

    closed_by: ClosedBy
    recording: str | None
    md5: str | None
    duration_ms: _Count
    size_bytes: _Count
    gaps: _Count


AudioEvent = SessionOpened | SessionResumed | SessionRefused | SegmentStored | SegmentFailed | SessionClosed
_events: msgspec.json.Decoder[AudioEvent] = msgspec.json.Decoder(AudioEvent)


def encode_event(event: AudioEvent) -> bytes:
    """An event as the topic's JSON."""
    return msgspec.json.encode(event)


def decode_event(value: bytes | None) -> AudioEvent | Malformed:
    """One record's value. Total: any bytes give an event or a `Malformed`."""
    return decoded(_events, value)


class Manifest(msgspec.Struct, frozen=True, kw_only=True):
    """What a recording holds, kept beside it.

    `md5` is that of the PCM, or for Opus and FLAC of the bytes as received; `sha256` and `size_bytes` are of the object
    `recording`. `seqs` are the ranges in it, `gaps` those that never came, and `failed` those that came and could not be
    stored; all in order and inclusive.
    """

    session_id: str
    user: str
    format: Format
    rate: int
    channels: int
    tier: Tier
    store: Store
    opened_ms: _Count
    closed_ms: _Count
    closed_by: ClosedBy
    duration_ms: _Count
    recording: str
    size_bytes: _Count
    md5: str
    sha256: str
    seqs: tuple[SeqRange, ...]
    gaps: tuple[SeqRange, ...]
    failed: tuple[SeqRange, ...] = ()


_manifests = msgspec.json.Decoder(Manifest)


def encode_manifest(manifest: Manifest) -> bytes:
    """A manifest as its object's JSON, indented for people."""
    return msgspec.json.format(msgspec.json.encode(manifest), indent=2)


def decode_manifest(data: bytes) -> Manifest | Malformed:
    """A manifest's object. Total: any bytes give a manifest or a `Malformed`."""
    try:
        return _manifests.decode(data)
    except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
        return Malformed("invalid", str(error))


_SEGMENT_EXTENSIONS = {Format.PCM_S16LE: "wav", Format.FLAC: "flac", Format.OPUS: "ogg"}


def segment_extension(format: Format) -> str:
    """PCM and Opus segments play by themselves; one of FLAC is a byte range of the session's stream."""
    return _SEGMENT_EXTENSIONS[format]


def recording_extension(opened: Open) -> str:
    """What a session's recording is."""
    if opened.format is Format.PCM_S16LE:
        return "wav" if opened.store is Store.WAV else "flac"
    return _SEGMENT_EXTENSIONS[opened.format]


#: The folder of all of them.
AUDIO_PREFIX = "audio/"


def session_prefix(session_id: str) -> str:
    """The folder of a session's objects."""
    return f"{AUDIO_PREFIX}{session_id}/"


def segment_key(session_id: str, first_seq: int, last_seq: int, extension: str) -> str:
    """The object of a range of chunks, both ends included; keys sort by `first_seq` up to 10 digits."""
    return f"{session_prefix(session_id)}segments/{first_seq:010d}-{last_seq:010d}.{extension}"


def recording_key(session_id: str, extension: str) -> str:
    """The object of the whole session."""
    return f"{session_prefix(session_id)}recording.{extension}"


def manifest_key(session_id: str) -> str:
    """The object that describes the recording."""
    return f"{session_prefix(session_id)}manifest.json"
