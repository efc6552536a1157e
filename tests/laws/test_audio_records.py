"""Audio records, frames and events: what was encoded is read back as it was, and any bytes at all give an answer."""

from __future__ import annotations

import hashlib
import struct

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st

from topics import audio, audio_events, audio_socket
from topics.audio import Chunk, Close, Format, Idle, Open, Store, Tier
from topics.audio_socket import Frame
from topics.headers import read_headers, write_headers
from topics.malformed import Malformed

ids = st.from_regex(r"[A-Za-z0-9._-]{1,128}", fullmatch=True).filter(lambda text: text not in (".", ".."))
users = st.text(max_size=128).filter(str.isprintable)
rates = st.integers(8_000, 65_535) | st.integers(6_554, 19_200).map(lambda tens: tens * 10)
pcm_opens = st.builds(
    Open,
    ids,
    users,
    st.just(Format.PCM_S16LE),
    rates,
    st.integers(1, 8),
    st.sampled_from(Tier),
    st.sampled_from([Store.FLAC, Store.WAV]),
)
other_opens = st.builds(
    Open,
    ids,
    users,
    st.sampled_from([Format.FLAC, Format.OPUS]),
    rates,
    st.sampled_from([1, 2, 3, 4, 5, 6, 8]),
    st.sampled_from(Tier),
    st.just(Store.ASIS),
)
_times = st.integers(0, audio.MAX_TIMESTAMP_MS)


@st.composite
def chunks(draw: st.DrawFn) -> Chunk:
    data = draw(st.binary(min_size=1, max_size=64))
    md5 = hashlib.md5(data).hexdigest() if draw(st.booleans()) else None
    return Chunk(draw(ids), draw(st.integers(0, audio.MAX_SEQ)), draw(_times), md5, data)


records = pcm_opens | other_opens | chunks() | st.builds(Close, ids) | st.just(Idle())


@given(records)
def test_a_record_is_read_back_as_it_was_sent(record: audio.AudioRecord) -> None:
    key, value, headers = audio.encode(record)
    assert audio.decode(key, value, read_headers(write_headers(headers))) == record
    # Another producer's headers beside ours change nothing.
    assert audio.decode(key, value, [("producer", b"x"), ("", None), *headers, ("type", b"none")]) == record


_names = st.sampled_from(["type", "seq", "captured_ms", "md5", "user", "format", "rate", "channels", "tier", "store"])
_values = (
    st.none()
    | st.binary(max_size=40)
    | st.integers().map(lambda number: str(number).encode())
    | st.sampled_from([b"open", b"chunk", b"close", b"idle", b"pcm_s16le", b"opus", b"flac", b"16000", b"1"])
)


@settings(max_examples=400)
@given(
    st.none() | st.binary(max_size=140) | ids.map(str.encode),
    st.none() | st.binary(max_size=20),
    st.lists(st.tuples(_names | st.text(max_size=4), _values), max_size=12),
)
def test_any_record_gives_an_answer(
    key: bytes | None, value: bytes | None, headers: list[tuple[str, bytes | None]]
) -> None:
    found = audio.decode(key, value, headers)
    if isinstance(found, Malformed):
        assert found.reason in set(audio.Reason) and found.error
    else:
        assert audio.decode(*audio.encode(found)) == found


@given(st.builds(Frame, st.integers(0, audio.MAX_SEQ), _times, st.binary(min_size=1, max_size=50)))
def test_a_frame_is_read_back_as_it_was_sent(frame: Frame) -> None:
    raw = audio_socket.encode_frame(frame)
    assert audio_socket.decode_frame(raw) == frame
    assert raw == struct.pack(">QQ", frame.seq, frame.captured_ms) + frame.data


@given(st.binary(max_size=40))
def test_any_frame_gives_an_answer(raw: bytes) -> None:
    found = audio_socket.decode_frame(raw, max_chunk_bytes=8)
    assert found.error if isinstance(found, Malformed) else audio_socket.encode_frame(found) == raw


_client_messages = st.builds(
    audio_socket.OpenMessage,
    st.text(),
    st.integers(-(2**63), 2**63),
    st.integers(-(2**63), 2**63),
    st.text(),
    st.none() | st.text(),
    st.none() | st.text(),
) | st.just(audio_socket.CloseMessage())
_server_messages = st.one_of(
    st.builds(audio_socket.ResumeMessage, st.integers(0, audio.MAX_SEQ)),
    st.builds(audio_socket.DurableMessage, st.integers(0, audio.MAX_SEQ)),
    st.builds(audio_socket.StoredMessage, st.integers(0, audio.MAX_SEQ)),
    st.builds(audio_socket.ClosedMessage, st.none() | st.text(), st.none() | st.text()),
    st.builds(audio_socket.ErrorMessage, st.sampled_from(audio_socket.ErrorCode), st.text()),
)


@given(_client_messages, _server_messages)
def test_a_message_is_read_back_as_it_was_sent(
    said: audio_socket.ClientMessage, answer: audio_socket.ServerMessage
) -> None:
    assert audio_socket.decode_client_message(audio_socket.encode_message(said)) == said
    assert audio_socket.decode_server_message(audio_socket.encode_message(answer)) == answer


_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5) | st.sampled_from(["open", "close", "error"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["type", "format", "rate", "code"]) | st.text(max_size=3), inner, max_size=4)
    ),
    max_leaves=8,
)
_texts = st.text() | _json.map(lambda value: msgspec.json.encode(value).decode())


@settings(max_examples=400)
@given(_texts | st.binary(), ids)
def test_any_message_gives_an_answer(text: str | bytes, session_id: str) -> None:
    said = audio_socket.decode_client_message(text)
    if isinstance(said, audio_socket.OpenMessage):
        opened = said.opened(session_id)
        assert isinstance(opened, Malformed) or audio.decode(*audio.encode(opened)) == opened
    audio_socket.decode_server_message(text)
    raw = text.encode() if isinstance(text, str) else text
    assert isinstance(audio_events.decode_event(raw), Malformed)
    assert isinstance(audio_events.decode_manifest(raw), Malformed)
