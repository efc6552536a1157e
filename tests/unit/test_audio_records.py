"""What is no audio record, and the words that say so; the shapes that clients and analysts rely on."""

from __future__ import annotations

import hashlib
import json

import pytest

from topics import audio, audio_events, audio_socket, specs
from topics.audio import Chunk, Format, Open, Reason, Store, Tier
from topics.audio_events import ClosedBy, Manifest, SegmentStored, SessionClosed
from topics.malformed import Malformed
from topics.opus import packet_samples

DATA = bytes(range(32))
CHUNK = {"type": b"chunk", "seq": b"3", "captured_ms": b"1795132800000"}
OPEN = {"type": b"open", "format": b"pcm_s16le", "rate": b"16000", "channels": b"1", "user": b"u"}


def decoded(headers: dict[str, bytes | None], key: bytes | None = b"s-1", value: bytes | None = DATA) -> object:
    """One record; a header of None is left out."""
    found = audio.decode(key, value, [(k, v) for k, v in headers.items() if v is not None])
    return found.reason if isinstance(found, Malformed) else found


def opened(format: Format = Format.PCM_S16LE, channels: int = 1, store: Store = Store.FLAC) -> Open:
    return Open("s-1", "u", format, 16_000, channels, Tier.STANDARD, store)


def test_plain_records() -> None:
    assert decoded(CHUNK) == Chunk("s-1", 3, 1_795_132_800_000, None, DATA)
    assert decoded({**OPEN, "store": b"wav", "tier": b"premium"}) == Open(
        "s-1", "u", Format.PCM_S16LE, 16_000, 1, Tier.PREMIUM, Store.WAV
    )
    assert decoded({"type": b"close"}, value=None) == audio.Close("s-1")
    assert decoded({"type": b"idle"}, key=None, value=None) == audio.Idle()


@pytest.mark.parametrize(
    "key",
    [
        None,
        b"",
        b".",
        b"..",
        b"a/b",
        b"a b",
        b"a\n",
        b"a\x00",
        b"a" * 129,
        b"a" * 1_000,
        "é".encode(),
        b"\xff",
        b"s-1\n",
    ],
)
@pytest.mark.parametrize("headers", [CHUNK, OPEN, {"type": b"close"}, {"type": b"other"}])
def test_a_key_that_is_no_session_id(key: bytes | None, headers: dict[str, bytes | None]) -> None:
    assert decoded(headers, key) == Reason.BAD_ID


@pytest.mark.parametrize(
    ("headers", "value", "reason"),
    [
        ({"type": None}, DATA, Reason.BAD_TYPE),
        ({"type": b"Chunk"}, DATA, Reason.BAD_TYPE),
        ({"seq": None}, DATA, Reason.BAD_HEADER),
        ({"seq": b"-1"}, DATA, Reason.BAD_HEADER),
        ({"seq": b"1.0"}, DATA, Reason.BAD_HEADER),
        ({"seq": b"+1"}, DATA, Reason.BAD_HEADER),
        ({"seq": b"1\n"}, DATA, Reason.BAD_HEADER),
        ({"seq": "١".encode()}, DATA, Reason.BAD_HEADER),
        ({"seq": str(1 << 40).encode()}, DATA, Reason.BAD_HEADER),
        ({"seq": b"9" * 5_000}, DATA, Reason.BAD_HEADER),
        ({"captured_ms": None}, DATA, Reason.BAD_HEADER),
        ({"captured_ms": b"1795132800000000"}, DATA, Reason.BAD_HEADER),
        ({}, b"", Reason.EMPTY),
        ({}, None, Reason.EMPTY),
        ({}, bytes(audio.MAX_CHUNK_BYTES + 1), Reason.TOO_LARGE),
        ({"md5": hashlib.md5(b"other").hexdigest().encode()}, DATA, Reason.MD5_MISMATCH),
        ({"md5": b"zz"}, DATA, Reason.BAD_HEADER),
        ({"md5": b""}, DATA, Reason.BAD_HEADER),
    ],
)
def test_a_chunk_that_is_none(headers: dict[str, bytes | None], value: bytes | None, reason: Reason) -> None:
    assert decoded({**CHUNK, **headers}, value=value) == reason


def test_md5_may_be_written_in_capitals() -> None:
    md5 = hashlib.md5(DATA).hexdigest()
    found = decoded({**CHUNK, "md5": md5.upper().encode()})
    assert isinstance(found, Chunk) and found.md5 == md5


@pytest.mark.parametrize(
    "headers",
    [
        {"format": None},
        {"format": b"mp3"},
        {"format": b"\xff"},
        {"rate": None},
        {"rate": b"7999"},
        {"rate": b"192010"},
        {"rate": b"65537"},
        {"rate": b"16e3"},
        {"channels": b"0"},
        {"channels": b"9"},
        {"channels": None},
        {"tier": b"gold"},
        {"store": b"ogg"},
        {"format": b"opus", "store": b"wav"},
        {"format": b"opus", "store": b"flac"},
        {"format": b"flac", "store": b"wav"},
        {"format": b"opus", "channels": b"7"},
        {"user": b"\xff"},
        {"user": b"a\nb"},
        {"user": b"u" * 129},
    ],
)
def test_an_open_that_is_none(headers: dict[str, bytes | None]) -> None:
    assert decoded({**OPEN, **headers}) == Reason.BAD_HEADER


@pytest.mark.parametrize(
    ("format", "asked", "kept"),
    [
        ("pcm_s16le", None, Store.FLAC),
        ("pcm_s16le", "flac", Store.FLAC),
        ("pcm_s16le", "wav", Store.WAV),
        ("pcm_s16le", "asis", Store.WAV),
        ("flac", None, Store.ASIS),
        ("flac", "flac", Store.ASIS),
        ("opus", None, Store.ASIS),
        ("opus", "asis", Store.ASIS),
    ],
)
def test_what_a_recording_is_kept_as(format: str, asked: str | None, kept: Store) -> None:
    found = audio.new_open("s-1", "", format, 48_000, 2, None, asked)
    assert isinstance(found, Open) and found.store is kept


def test_a_chunk_is_held_against_its_sessions_format() -> None:
    assert audio.misfit(opened(), b"ab") is None
    assert audio.misfit(opened(channels=3), bytes(12)) is None
    for channels, size in ((1, 3), (2, 6), (3, 8)):
        problem = audio.misfit(opened(channels=channels), bytes(size))
        assert problem is not None and problem.reason == Reason.ODD_LENGTH
    opus = opened(Format.OPUS, store=Store.ASIS)
    assert audio.misfit(opus, b"\xfc\x00\x01") is None
    # Code 3 without its count, with a count of 0, with 63 frames of 60 ms.
    for packet in (b"\x03", b"\x03\x00", b"\x1b\x3f"):
        problem = audio.misfit(opus, packet)
        assert problem is not None and problem.reason == Reason.BAD_PACKET
    assert audio.misfit(opened(Format.FLAC, store=Store.ASIS), b"x") is None


def test_how_long_a_chunk_plays() -> None:
    assert audio.duration_us(opened(), bytes(4_096)) == 128_000
    assert audio.duration_us(opened(channels=2), bytes(4_096)) == 64_000
    assert audio.duration_us(opened(Format.OPUS), b"\xfc\x00") == 20_000
    assert audio.duration_us(opened(Format.FLAC), b"x") is None


def test_opus_packet_durations() -> None:
    """Frame sizes of RFC 6716, table 2, and its four ways to pack frames."""
    first = {config: packet_samples(bytes([config << 3])) for config in range(32)}
    assert [first[c] for c in (0, 1, 2, 3, 11, 12, 13, 14, 15)] == [480, 960, 1920, 2880, 2880, 480, 960, 480, 960]
    assert [first[c] for c in (16, 17, 18, 19, 28, 31)] == [120, 240, 480, 960, 120, 960]
    assert [packet_samples(bytes([19 << 3 | code, 6])) for code in range(4)] == [960, 1920, 1920, 5760]
    assert packet_samples(bytes([19 << 3 | 3, 7])) is None
    assert packet_samples(b"") is None


def test_control_messages_are_as_promised() -> None:
    """DESIGN's own words, byte for byte where the server speaks."""
    said = audio_socket.decode_client_message(
        '{"type":"open","format":"pcm_s16le","rate":16000,"channels":1,"more":[]}'
    )
    assert isinstance(said, audio_socket.OpenMessage)
    assert said.opened("s-1") == Open("s-1", "", Format.PCM_S16LE, 16_000, 1, Tier.STANDARD, Store.FLAC)
    assert audio_socket.decode_client_message('{"type": "close"}') == audio_socket.CloseMessage()
    answers = [
        (audio_socket.ResumeMessage(4), {"type": "resume", "from": 4}),
        (audio_socket.DurableMessage(4), {"type": "durable", "seq": 4}),
        (audio_socket.StoredMessage(4), {"type": "stored", "seq": 4}),
        (audio_socket.ClosedMessage("k", "m"), {"type": "closed", "recording": "k", "md5": "m"}),
        (
            audio_socket.ErrorMessage(audio_socket.ErrorCode.REFUSED, "full"),
            {"type": "error", "code": "refused", "message": "full"},
        ),
    ]
    for answer, shape in answers:
        assert json.loads(audio_socket.encode_message(answer)) == shape


@pytest.mark.parametrize(
    "text", ["", "{}", "[]", '{"type":"open"}', '{"type":"resume","from":1}', '{"type":"open","rate":"x"}', "[" * 5_000]
)
def test_a_message_that_is_none(text: str) -> None:
    found = audio_socket.decode_client_message(text)
    assert isinstance(found, Malformed) and found.reason == audio_socket.ErrorCode.BAD_MESSAGE


def test_a_message_that_is_too_long_is_not_read() -> None:
    long = '{"type":"close","more":"' + "x" * audio_socket.MAX_MESSAGE_BYTES + '"}'
    assert isinstance(audio_socket.decode_client_message(long), Malformed)


def test_events_carry_their_source_and_their_type() -> None:
    stored = SegmentStored(
        session_id="s-1",
        source_partition=2,
        source_offset=90,
        first_offset=10,
        first_seq=0,
        last_seq=9,
        stored_seq=9,
        key=audio_events.segment_key("s-1", 0, 9, "wav"),
        size_bytes=44,
        md5="m",
        duration_ms=1,
    )
    said = json.loads(audio_events.encode_event(stored))
    assert (said["type"], said["source_partition"], said["source_offset"]) == ("segment_stored", 2, 90)
    closed = SessionClosed(
        session_id="s-1",
        source_partition=2,
        source_offset=91,
        closed_by=ClosedBy.CLIENT,
        recording=None,
        md5=None,
        duration_ms=0,
        size_bytes=0,
        gaps=0,
    )
    for event in (stored, closed):
        assert audio_events.decode_event(audio_events.encode_event(event)) == event
    for value in (None, b"", b"{}", b'{"type":"segment_lost"}', b"\xff", b"[" * 100_000):
        assert isinstance(audio_events.decode_event(value), Malformed)


def test_the_manifest_is_as_promised() -> None:
    manifest = Manifest(
        session_id="s-1",
        user="u",
        format=Format.PCM_S16LE,
        rate=16_000,
        channels=1,
        tier=Tier.STANDARD,
        store=Store.FLAC,
        opened_ms=1,
        closed_ms=2,
        closed_by=ClosedBy.SILENCE,
        duration_ms=128,
        recording=audio_events.recording_key("s-1", "flac"),
        size_bytes=100,
        md5="m",
        sha256="s",
        seqs=((0, 3), (5, 9)),
        gaps=((4, 4),),
    )
    raw = audio_events.encode_manifest(manifest)
    assert audio_events.decode_manifest(raw) == manifest
    said = json.loads(raw)
    assert said["seqs"] == [[0, 3], [5, 9]] and said["gaps"] == [[4, 4]]
    promised = {"format", "rate", "channels", "duration_ms", "md5", "sha256", "closed_by", "seqs", "gaps"}
    assert promised <= said.keys()


def test_object_keys_are_as_promised() -> None:
    assert audio_events.segment_key("s-1", 0, 468, "wav") == "audio/s-1/segments/0000000000-0000000468.wav"
    assert audio_events.manifest_key("s-1") == "audio/s-1/manifest.json"
    kinds = {
        audio_events.recording_key("s-1", audio_events.recording_extension(opened(format, store=store)))
        for format, store in [
            (Format.PCM_S16LE, Store.FLAC),
            (Format.PCM_S16LE, Store.WAV),
            (Format.OPUS, Store.ASIS),
            (Format.FLAC, Store.ASIS),
        ]
    }
    assert kinds == {f"audio/s-1/recording.{extension}" for extension in ("flac", "wav", "ogg")}


def test_topics_keep_chunks_for_a_day_by_the_brokers_time() -> None:
    chunks = specs.source(specs.AUDIO_CHUNKS, 4, specs.AUDIO_RETENTION_H, audio.MAX_CHUNK_BYTES).configs
    dead = specs.deadletter(specs.AUDIO_DEADLETTER, 4, 720, audio.MAX_CHUNK_BYTES).configs
    assert chunks["message.timestamp.type"] == "LogAppendTime" and chunks["retention.ms"] == "86400000"
    assert audio.MAX_CHUNK_BYTES < int(chunks["max.message.bytes"]) < int(dead["max.message.bytes"])
    assert specs.outcomes(specs.AUDIO_SEGMENTS, 4, 168).configs["retention.ms"] == str(168 * 3_600_000)
