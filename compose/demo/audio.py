"""The demo's audio: speech through the gateway's WebSocket and through Kafka, worker and gateway killed in mid-session, and
what the object store and ClickHouse have of it compared with what was sent."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from aiohttp import ClientError, ClientSession
from confluent_kafka import Producer

from compose.audio_client import AudioSender, SendFailed, Sent
from compose.audio_source import SourceError, read_chunks
from compose.clients import bucket
from compose.demo.audio_truth import FoundAudio, SentAudio, audio_differences, md5_of
from compose.demo.speech import LONG, SHORT, opus_file, speech_file
from compose.ffmpeg import FfmpegFailed
from compose.processes import Processes
from compose.settings import Settings
from sinks.clickhouse.sink import ClickHouseSink
from streams.audio.containers.ogg_opus import OggOpusReader
from topics import audio, specs
from topics.audio import Format, Open, Store, Tier
from topics.audio_events import Manifest, decode_manifest, manifest_key
from topics.audio_socket import OpenMessage

#: A minute of audio would be one segment: the demo wants several.
SETTINGS: dict[str, Any] = {"audio_upload_after_s": 5.0, "audio_reorder_s": 1.0}
#: Both sessions are spread over this time, so that the kills fall into the midst of them.
SEND_S = 12.0
SEND_WITHIN_S = 90.0
SETTLE_S = 60.0
DUPLICATE_EVERY = 7
#: Records change places within so many.
DISORDER = 4

#: Columns that are compared.
_SESSION = (
    *("status", "closed_by", "error", "last_seq", "seqs", "gaps", "duplicates", "bytes"),
    *("recording", "recording_bytes", "md5"),
)
_SEGMENT = ("first_seq", "last_seq", "status")

Say = Callable[[str], None]


@dataclass
class Session:
    """One line of the demo's table."""

    how: str
    opened: Open
    sent: SentAudio
    found: FoundAudio | None = None


@dataclass
class AudioOutcome:
    """What the demo saw, and what was wrong."""

    sessions: list[Session] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


async def run_audio(
    processes: Processes, sink: ClickHouseSink, folder: Path, kill: Callable[[str], str], say: Say
) -> AudioOutcome:
    """Send both sessions with faults, wait until ClickHouse says they are over, compare. `kill` ends a process by name."""
    outcome = AudioOutcome()
    looking = asyncio.create_task(_look_after(processes))
    try:
        async with asyncio.timeout(SEND_WITHIN_S):
            await asyncio.gather(
                _by_socket(processes.gateway_url, folder, kill, say, outcome),
                _by_kafka(processes.settings, folder, outcome),
            )
        say("waiting for the recordings")
        await _settle(sink, outcome)
        for session in outcome.sessions:
            session.found = await _found(processes, sink, session.opened, folder)
            outcome.problems += audio_differences(session.sent, session.found)
    except (SendFailed, SourceError, FfmpegFailed, _Missing) as error:
        outcome.problems.append(f"audio: {error}")
    except TimeoutError:
        outcome.problems.append(f"audio: the sessions were not sent within {SEND_WITHIN_S:.0f} s")
    finally:
        looking.cancel()
    return outcome


class _Missing(Exception):
    """Something that should be there is not."""


async def _look_after(processes: Processes) -> None:
    while True:
        processes.look()
        await asyncio.sleep(0.2)


# -- sending -----------------------------------------------------------------------------------------------------


async def _by_socket(url: str, folder: Path, kill: Callable[[str], str], say: Say, outcome: AudioOutcome) -> None:
    """PCM through the gateway, whose worker is killed after a third of it, and which is killed itself after two."""
    file = await speech_file(LONG, folder)
    opened = Open("demo-socket", "demo", Format.PCM_S16LE, 16_000, 1, Tier.STANDARD, Store.FLAC)
    chunks = await _read(file, opened)
    outcome.sessions.insert(0, Session("pcm, socket", opened, SentAudio(opened.session_id, dict(enumerate(chunks)))))
    say(f"streaming {file.name} to the gateway, more to Kafka")
    faults = {len(chunks) // 3: "audio", len(chunks) * 2 // 3: "gateway"}

    async def paced() -> AsyncIterator[bytes]:
        for number, chunk in enumerate(chunks):
            if number in faults:
                say(f"chunk {number} of {len(chunks)}: SIGKILL to {kill(faults[number])}")
            yield chunk
            await asyncio.sleep(SEND_S / len(chunks))

    connections = 1

    def progress(sent: Sent) -> None:
        nonlocal connections
        if sent.connections > connections:
            connections = sent.connections
            say(f"the client is connected again, and goes on with chunk {sent.durable + 1}")

    message = OpenMessage(opened.format, opened.rate, opened.channels, opened.user)
    sent = await AudioSender(url, opened.session_id, message, paced(), progress=progress).run()
    if sent.connections < 2:
        outcome.problems.append("audio: the gateway's end did not interrupt the client")
    if sent.recorded_md5 != sent.md5:
        outcome.problems.append(f"audio: the client was told of MD5 {sent.recorded_md5}, and had sent {sent.md5}")


async def _by_kafka(settings: Settings, folder: Path, outcome: AudioOutcome) -> None:
    """Opus packets from a plain producer: in small disorder, some of them twice, some never."""
    opened = Open("demo-kafka", "demo", Format.OPUS, 48_000, 1, Tier.STANDARD, Store.ASIS)
    file = await opus_file(await speech_file(SHORT, folder), folder)
    packets = dict(enumerate(await _read(file, opened)))
    count = len(packets)
    for seq in [*range(count * 2 // 5, count * 2 // 5 + 8), count * 3 // 4]:
        del packets[seq]
    twice = [seq for seq in packets if seq % DUPLICATE_EVERY == 0]
    outcome.sessions.append(Session("opus, Kafka", opened, SentAudio(opened.session_id, packets, len(twice))))
    producer = Producer(
        {"bootstrap.servers": settings.kafka_bootstrap, "partitioner": "murmur2_random", "enable.idempotence": True}
    )
    _say(producer, opened)
    for seq in _disordered(sorted([*packets, *twice])):
        _say(producer, audio.Chunk(opened.session_id, seq, time.time_ns() // 1_000_000, None, packets[seq]))
        await asyncio.sleep(SEND_S / count)
    _say(producer, audio.Close(opened.session_id))
    if left := await asyncio.to_thread(producer.flush, 30.0):
        raise _Missing(f"Kafka has not confirmed {left} records")


async def _read(file: Path, opened: Open) -> list[bytes]:
    return [chunk.data async for chunk in read_chunks(file, opened.format, opened.rate, opened.channels)]


def _say(producer: Producer, record: audio.AudioRecord) -> None:
    encoded = audio.encode(record)
    producer.produce(specs.AUDIO_CHUNKS, encoded.value, encoded.key, headers=encoded.headers)
    producer.poll(0)


def _disordered(seqs: Sequence[int]) -> list[int]:
    rng = random.Random(1)
    blocks = [list(seqs[at : at + DISORDER]) for at in range(0, len(seqs), DISORDER)]
    for block in blocks:
        rng.shuffle(block)
    return [seq for block in blocks for seq in block]


# -- what came of it ---------------------------------------------------------------------------------------------


async def _settle(sink: ClickHouseSink, outcome: AudioOutcome) -> None:
    """Poll ClickHouse until all sessions are closed and their segments are in the recordings, or the time is over."""
    expected = (len(outcome.sessions), sum(len(session.sent.chunks) for session in outcome.sessions))
    deadline = time.monotonic() + SETTLE_S
    while time.monotonic() < deadline:
        rows = await sink.query(
            f"SELECT (SELECT count() FROM {sink.qualified('audio_sessions')} WHERE status = 'closed'), "
            f"(SELECT sum(last_seq - first_seq + 1) FROM {sink.qualified('audio_segments')} WHERE status = 'removed')"
        )
        if tuple(rows[0]) == expected:
            return
        await asyncio.sleep(0.3)


async def _found(processes: Processes, sink: ClickHouseSink, opened: Open, folder: Path) -> FoundAudio:
    store = bucket(processes.settings)
    try:
        raw = await store.get(manifest_key(opened.session_id))
    finally:
        await store.close()
    manifest = decode_manifest(raw or b"")
    if not isinstance(manifest, Manifest):
        raise _Missing(f"{opened.session_id} has no manifest after {SETTLE_S:.0f} s")
    recording = await _downloaded(processes.gateway_url, opened.session_id)
    return FoundAudio(
        manifest,
        recording,
        await _audio_md5(opened, recording, folder / Path(manifest.recording).name),
        *await _rows(sink, opened.session_id),
    )


async def _downloaded(gateway_url: str, session_id: str) -> bytes:
    """The recording, where the gateway leads to it."""
    try:
        async with (
            ClientSession(raise_for_status=True) as client,
            client.get(f"{gateway_url}/api/audio/{session_id}/download") as answer,
        ):
            return await answer.read()
    except ClientError as error:
        raise _Missing(f"the recording of {session_id} cannot be downloaded: {error}") from None


async def _audio_md5(opened: Open, recording: bytes, file: Path) -> str:
    """Of the PCM that ffmpeg decodes, or of the Opus packets."""
    if opened.format is Format.OPUS:
        return md5_of(OggOpusReader().feed(recording))
    await asyncio.to_thread(file.write_bytes, recording)
    return md5_of(await _read(file, opened))


async def _rows(sink: ClickHouseSink, session_id: str) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    which = "WHERE session_id = {id:String}"
    rows = await sink.query(
        f"SELECT {', '.join(_SESSION)} FROM {sink.qualified('audio_sessions')} {which}", id=session_id
    )
    segments = await sink.query(
        f"SELECT {', '.join(_SEGMENT)} FROM {sink.qualified('audio_segments')} {which} ORDER BY first_seq",
        id=session_id,
    )
    if len(rows) != 1:
        raise _Missing(f"audio_sessions has {len(rows)} rows of {session_id}")
    return dict(zip(_SESSION, rows[0], strict=True)), [dict(zip(_SEGMENT, row, strict=True)) for row in segments]
