"""Containers: what was written is read back bit for bit, however it is cut; damage is an error, never other audio."""

from __future__ import annotations

import hashlib
import io
from contextlib import suppress

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from streams.audio.containers import flac, ogg, wav
from streams.audio.containers.errors import BadAudio
from streams.audio.containers.flac import FlacEncoder
from streams.audio.containers.ogg import PageReader
from streams.audio.containers.ogg_opus import OggOpusReader, OggOpusWriter, OpusHead
from streams.audio.containers.recording import new_recording
from streams.audio.containers.wav import WavReader
from streams.audio.containers.window import window_wav
from tests.audio import cut
from topics.audio import Format, Open, Store, Tier
from topics.opus import packet_samples

_cuts = st.lists(st.integers(0, 50_000), max_size=5)
_rates = st.integers(8_000, 65_535) | st.integers(6_554, 19_200).map(lambda tens: tens * 10)


@st.composite
def pcm(draw: st.DrawFn) -> tuple[int, bytes]:
    """Channels, and PCM of them: a stretch of any samples, over and over."""
    channels = draw(st.integers(1, 8))
    part = draw(st.binary(max_size=400))
    whole = part * draw(st.sampled_from([1, 1, 7, 40]))
    return channels, whole[: len(whole) - len(whole) % (2 * channels)]


@st.composite
def packets(draw: st.DrawFn) -> bytes:
    """What a reader takes for an Opus packet, of any size up to more than three pages."""
    size = draw(st.integers(1, 300) | st.sampled_from([254, 255, 256, 510, 65_024, 65_025, 65_026, 131_000, 200_000]))
    head = draw(st.integers(0, 255).filter(lambda toc: toc & 3 != 3)).to_bytes(1, "big")
    return (head + draw(st.binary(min_size=1, max_size=9)) * size)[:size]


# -- WAV ---------------------------------------------------------------------------------------------------------------


@given(pcm(), _rates, _cuts)
def test_a_wav_is_read_back(made: tuple[int, bytes], rate: int, cuts: list[int]) -> None:
    channels, data = made
    reader = WavReader()
    assert b"".join(reader.feed(block) for block in cut(wav.wav_of(rate, channels, data), cuts)) == data
    reader.finish()
    assert (reader.rate, reader.channels) == (rate, channels)


@given(pcm(), st.lists(st.tuples(st.sampled_from([b"LIST", b"junk"]), st.binary(max_size=20)), max_size=3), _cuts)
def test_other_chunks_of_a_wav_are_passed_over(
    made: tuple[int, bytes], others: list[tuple[bytes, bytes]], cuts: list[int]
) -> None:
    channels, data = made
    file = wav.wav_of(8_000, channels, data)
    extra = b"".join(name + len(body).to_bytes(4, "little") + body + bytes(len(body) & 1) for name, body in others)
    reader = WavReader()
    read = [reader.feed(block) for block in cut(file[:12] + extra + file[12:] + b"LIST\x02\0\0\0ab", cuts)]
    reader.finish()
    assert b"".join(read) == data


@settings(max_examples=300)
@given(st.binary(max_size=120) | st.binary(max_size=120).map(lambda rest: wav.header(8_000, 1, 0)[:36] + rest), _cuts)
def test_any_bytes_as_wav_give_pcm_or_an_error(data: bytes, cuts: list[int]) -> None:
    reader = WavReader()
    with suppress(BadAudio):
        for block in cut(data, cuts):
            reader.feed(block)
        reader.finish()


# -- FLAC --------------------------------------------------------------------------------------------------------------


def flac_of(rate: int, channels: int, data: bytes, cuts: list[int]) -> bytes:
    encoder = FlacEncoder(rate, channels)
    sent = b"".join([encoder.add(block) for block in cut(data, cuts)] + [encoder.finish()])
    return encoder.head + sent[len(encoder.head) :]


@settings(deadline=None)
@given(pcm(), _rates, _cuts)
@example((1, b""), 16_000, [])
@example((8, bytes(16)), 192_000, [3])
@example((2, bytes(4 * 9_000)), 65_540, [1, 2, 5])
def test_flac_gives_its_pcm_back_and_knows_its_md5(made: tuple[int, bytes], rate: int, cuts: list[int]) -> None:
    channels, data = made
    file = flac_of(rate, channels, data, cuts)
    assert file == flac_of(rate, channels, data, [])
    assert file[26:42] == hashlib.md5(data).digest()
    packed = int.from_bytes(file[18:26], "big")
    samples = len(data) // (2 * channels)
    assert (packed >> 44, (packed >> 41 & 7) + 1, packed & 0xF_FFFF_FFFF) == (rate, channels, samples)
    if data:  # libsndfile opens no empty stream
        assert b"".join(flac.decode(io.BytesIO(file))) == data


@settings(deadline=None)
@given(
    st.binary(max_size=200) | st.binary(max_size=100).map(lambda rest: flac_of(8_000, 1, bytes(200), [])[:60] + rest)
)
def test_any_bytes_as_flac_give_pcm_or_an_error(data: bytes) -> None:
    with suppress(BadAudio):
        list(flac.decode(io.BytesIO(data)))


@settings(deadline=None)
@given(pcm().filter(lambda made: bool(made[1])), st.data())
def test_damaged_or_cut_flac_is_never_other_audio(made: tuple[int, bytes], data: st.DataObject) -> None:
    channels, samples = made
    file = bytearray(flac_of(16_000, channels, samples, []))
    at = data.draw(st.integers(0, len(file) - 1))
    if data.draw(st.booleans()):
        del file[at:]
    else:
        file[at] ^= 1 << data.draw(st.integers(0, 7))
    with suppress(BadAudio):
        found = b"".join(flac.decode(io.BytesIO(file)))
        # Without the bits that say how many there are, no more than an MD5 of zeros would let other samples pass.
        assert found == samples


@given(st.integers(1, 8), st.binary(min_size=1, max_size=40))
def test_flac_of_half_a_sample_is_refused(channels: int, data: bytes) -> None:
    encoder = FlacEncoder(16_000, channels)
    encoder.add(data)
    if len(data) % (2 * channels):
        with pytest.raises(BadAudio, match="into a sample"):
            encoder.finish()


# -- Ogg ---------------------------------------------------------------------------------------------------------------


def ogg_of(made: list[bytes], serial: int = 7, channels: int = 1) -> bytes:
    writer = OggOpusWriter(48_000, channels, serial)
    return b"".join([writer.start(), *(writer.add(packet) for packet in made), writer.finish()])


def read(data: bytes, cuts: list[int]) -> tuple[OpusHead | None, list[bytes]]:
    reader = OggOpusReader()
    found = [packet for block in cut(data, cuts) for packet in reader.feed(block)]
    reader.finish()
    return reader.head, found


def crc_bit_by_bit(data: bytes) -> int:
    """RFC 3533's own words: polynomial 0x04c11db7, initial value 0, no inversion, highest bit first."""
    register = 0
    for byte in data:
        register ^= byte << 24
        for _ in range(8):
            register = (register << 1 ^ (0x04C11DB7 if register & 0x8000_0000 else 0)) & 0xFFFF_FFFF
    return register


@given(st.binary(max_size=300))
def test_the_checksum_is_oggs(data: bytes) -> None:
    assert ogg.checksum(data) == crc_bit_by_bit(data)


@settings(deadline=None)
@given(st.lists(packets(), max_size=12), st.sampled_from([1, 2, 3, 4, 5, 6, 8]), st.integers(0, 2**32 - 1), _cuts)
def test_opus_packets_are_read_back(made: list[bytes], channels: int, serial: int, cuts: list[int]) -> None:
    file = ogg_of(made, serial, channels)
    assert read(file, cuts) == (OpusHead(channels, 48_000), made)
    pages = PageReader().feed(file)
    assert [page.sequence for page in pages] == list(range(len(pages)))
    assert {page.serial for page in pages} == {serial}
    # Only the first begins the stream and only the last ends it; a page's granule is the samples up to its last packet.
    assert [bool(p.flags & ogg.FIRST) for p in pages] == [True] + [False] * (len(pages) - 1)
    assert [bool(p.flags & ogg.LAST) for p in pages] == [False] * (len(pages) - 1) + [True]
    samples, ended = 0, iter(made)
    for page in pages[2:]:
        ends = sum(size < 255 for size in page.lacing)
        samples += sum(packet_samples(next(ended)) or 0 for _ in range(ends))
        assert page.granule == (samples if ends or not made else ogg.NO_GRANULE)
        assert len(page.body) == sum(page.lacing)


@settings(deadline=None)
@given(st.lists(packets().filter(lambda p: len(p) < 600), min_size=1, max_size=8), st.lists(packets(), max_size=3))
def test_a_chained_stream_is_read_on(first: list[bytes], second: list[bytes]) -> None:
    assert read(ogg_of(first) + ogg_of(second, 8), [])[1] == first + second


@settings(deadline=None)
@given(st.lists(packets().filter(lambda p: len(p) < 600), min_size=1, max_size=8), st.data())
def test_a_flipped_bit_is_never_passed_on(made: list[bytes], data: st.DataObject) -> None:
    file = bytearray(ogg_of(made))
    at = data.draw(st.integers(0, len(file) - 1))
    file[at] ^= 1 << data.draw(st.integers(0, 7))
    with pytest.raises(BadAudio):
        read(bytes(file), [])


@settings(deadline=None)
@given(st.lists(packets(), min_size=1, max_size=5), st.data())
def test_a_stream_that_is_cut_off_gives_a_beginning_of_it(made: list[bytes], data: st.DataObject) -> None:
    file = ogg_of(made)
    reader = OggOpusReader()
    found = reader.feed(file[: data.draw(st.integers(0, len(file) - 1))])
    assert found == made[: len(found)]


@settings(deadline=None)
@given(st.lists(packets(), min_size=4, max_size=6).map(lambda made: [bytes([19 << 3]) * 70_000, *made]), st.data())
def test_a_lost_page_is_noticed(made: list[bytes], data: st.DataObject) -> None:
    pages = PageReader().feed(ogg_of(made))
    lost = data.draw(st.integers(0, len(pages) - 2))
    del pages[lost]
    with pytest.raises(BadAudio):
        read(b"".join(ogg.write_page(page) for page in pages), [])


@settings(max_examples=300, deadline=None)
@given(
    st.binary(max_size=100)
    | st.lists(
        st.builds(
            lambda flags, granule, sequence, body: ogg.write_page(
                ogg.Page(flags, granule, 1, sequence, ogg.lacing_of(len(body)), body)
            ),
            st.integers(0, 255),
            st.integers(0, 2**64 - 1),
            st.integers(0, 2),
            st.binary(max_size=30) | st.binary(max_size=20).map(lambda rest: b"OpusHead\x01" + rest),
        ),
        max_size=5,
    ).map(b"".join),
    _cuts,
)
def test_any_bytes_as_ogg_give_packets_or_an_error(data: bytes, cuts: list[int]) -> None:
    with suppress(BadAudio):
        read(data, cuts)


# -- recordings --------------------------------------------------------------------------------------------------------


@settings(deadline=None)
@given(pcm(), st.sampled_from([Store.FLAC, Store.WAV]), _cuts)
def test_a_recording_of_pcm_holds_it_bit_for_bit(made: tuple[int, bytes], store: Store, cuts: list[int]) -> None:
    channels, data = made
    opened = Open("s", "", Format.PCM_S16LE, 16_000, channels, Tier.STANDARD, store)
    recording = new_recording(opened, len(data))
    sent = b"".join([recording.start(), *(recording.add(block) for block in cut(data, cuts)), recording.finish()])
    file = recording.head + sent[len(recording.head) :]
    assert recording.md5 == hashlib.md5(data).hexdigest()
    assert recording.duration_ms == len(data) * 1000 // opened.byte_rate
    if store is Store.WAV:
        assert file == wav.wav_of(16_000, channels, data)
    elif data:
        assert b"".join(flac.decode(io.BytesIO(file))) == data


@settings(deadline=None)
@given(st.lists(packets(), max_size=6), st.binary(max_size=90))
def test_a_recording_as_received_holds_its_bytes(made: list[bytes], stream: bytes) -> None:
    opened = Open("s", "", Format.OPUS, 48_000, 2, Tier.STANDARD, Store.ASIS)
    recording = new_recording(opened, 0)
    file = b"".join([recording.start(), *map(recording.add, made), recording.finish()])
    assert read(file, []) == (OpusHead(2, 48_000), made) and recording.head == b""
    assert recording.md5 == hashlib.md5(b"".join(made)).hexdigest()
    as_received = new_recording(Open("s", "", Format.FLAC, 16_000, 1, Tier.STANDARD, Store.ASIS), 0)
    assert (
        b"".join([as_received.start(), *(as_received.add(b) for b in cut(stream, [5])), as_received.finish()]) == stream
    )
    assert as_received.md5 == hashlib.md5(stream).hexdigest() and as_received.duration_ms is None


@settings(max_examples=200, deadline=None)
@given(
    st.sampled_from(Format),
    st.lists(
        st.binary(max_size=60) | st.binary(max_size=60).map(lambda rest: b"\xff\xf8\x19\x08\0" + rest), max_size=4
    ),
)
def test_any_bytes_as_a_window_give_a_wav_or_an_error(format: Format, chunks: list[bytes]) -> None:
    with suppress(BadAudio):
        reader = WavReader()
        reader.feed(window_wav(Open("s", "", format, 16_000, 2, Tier.STANDARD, Store.ASIS), chunks))
        reader.finish()
