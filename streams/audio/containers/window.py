"""The last of a session as a WAV that plays by itself, whatever the session's format. For a thread: it may take a second."""

from __future__ import annotations

import io
from collections.abc import Sequence

from streams.audio.containers import wav
from streams.audio.containers.errors import BadAudio
from streams.audio.containers.flac import frame_header, stream_head
from streams.audio.containers.forward import ForwardFile, Unreadable
from streams.audio.containers.ogg_opus import OggOpusWriter
from topics.audio import Format, Open


def window_wav(opened: Open, chunks: Sequence[bytes]) -> bytes:
    """Consecutive chunks as a WAV of 16-bit PCM: Opus at 48 kHz, FLAC from the first frame that begins in them.

    Raises BadAudio for bytes that are not of the session's format.
    """
    if opened.format is Format.PCM_S16LE:
        pcm = b"".join(chunks)
        if len(pcm) % opened.frame_bytes:
            raise BadAudio(f"{len(pcm)} bytes are no whole number of {opened.channels}-channel samples")
        return wav.wav_of(opened.rate, opened.channels, pcm)
    file = _ogg(opened, chunks) if opened.format is Format.OPUS else _flac(opened, b"".join(chunks))
    played: list[bytes] = []
    try:
        with ForwardFile(io.BytesIO(file)) as source:
            rate, channels = source.samplerate, source.channels
            for block in source.pcm(_BLOCK_SAMPLES):
                played.append(block)
    except Unreadable as error:
        if not played:
            raise BadAudio(f"{opened.format} that cannot be played: {error}") from error
    return wav.wav_of(rate, channels, b"".join(played))


# The last frame of a FLAC stream is cut off somewhere; the block in which libsndfile meets that is lost, so it is small.
_BLOCK_SAMPLES = 64


def _ogg(opened: Open, packets: Sequence[bytes]) -> bytes:
    """Nothing is cut off at the start: it is not the start of the encoder's stream."""
    writer = OggOpusWriter(opened.rate, opened.channels, 0, pre_skip=0)
    return b"".join([writer.start(), *(writer.add(packet) for packet in packets), writer.finish()])


def _flac(opened: Open, data: bytes) -> bytes:
    """The frames in `data` behind a head of their own, where the stream's is not among them."""
    if data.startswith(b"fLaC"):
        return data
    found = frame_header(data)
    if found is None:
        raise BadAudio(f"no FLAC frame begins in these {len(data)} bytes")
    at, bits = found
    return stream_head(opened.rate, opened.channels, bits) + data[at:]
