"""Audio over WebSockets on the real stack: Kafka, an audio worker and gateways, as processes that can be killed."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from compose.audio_client import AudioSender
from compose.local.stack import LocalStack
from tests.audio import encoded, sound
from tests.audiostack import Gateway, Run, Session, audio_run, new_session, noise
from tests.chaos.workers import ROOT
from topics import specs
from topics.audio_events import SessionResumed
from topics.audio_socket import (
    ClosedMessage,
    CloseMessage,
    DurableMessage,
    ErrorCode,
    ErrorMessage,
    Frame,
    OpenMessage,
    ResumeMessage,
    ServerMessage,
    StoredMessage,
    decode_server_message,
    encode_frame,
    encode_message,
)

pytestmark = pytest.mark.stack

WAIT_S = 40.0


class Talk:
    """A client that says what it is told to, and keeps what it hears."""

    def __init__(self, ws: aiohttp.ClientWebSocketResponse, session: Session, seed: int) -> None:
        self.ws, self.session, self.seed = ws, session, seed
        self.heard: list[ServerMessage] = []

    async def open(self, **other: Any) -> int:
        await self.ws.send_str(encode_message(open_message(self.session, **other)))
        message = await self.until(ResumeMessage)
        assert isinstance(message, ResumeMessage)
        return message.from_seq

    async def frames(self, first: int, last: int) -> None:
        for seq in range(first, last + 1):
            data = noise(self.seed, seq, self.session.opened)
            await self.ws.send_bytes(encode_frame(Frame(seq, time.time_ns() // 1_000_000, data)))
            self.session.chunks[seq] = data

    async def close(self) -> ClosedMessage:
        await self.ws.send_str(encode_message(CloseMessage()))
        closed = await self.until(ClosedMessage)
        assert isinstance(closed, ClosedMessage)
        return closed

    async def durable(self, seq: int) -> None:
        while not any(isinstance(m, DurableMessage) and m.seq >= seq for m in self.heard):
            await self.until(DurableMessage)

    async def hear(self) -> ServerMessage | None:
        """The next message; None at the end."""
        async with asyncio.timeout(WAIT_S):
            frame = await self.ws.receive()
        if frame.type is not aiohttp.WSMsgType.TEXT:
            return None
        message = decode_server_message(frame.data)
        assert not isinstance(message, tuple), message
        self.heard.append(message)
        return message

    async def until(self, kind: type) -> ServerMessage:
        while (message := await self.hear()) is not None:
            if isinstance(message, kind):
                return message
        raise AssertionError(f"closed with {self.ws.close_code} before {kind.__name__}: {self.heard[-5:]}")

    async def error(self) -> tuple[ErrorCode, int | None]:
        """The code of the error that ends the connection, and the close code."""
        message = await self.until(ErrorMessage)
        assert isinstance(message, ErrorMessage) and message.message
        while await self.hear() is not None:
            continue
        return message.code, self.ws.close_code


def open_message(session: Session, **other: Any) -> OpenMessage:
    opened = session.opened
    values = {"format": opened.format, "rate": opened.rate, "channels": opened.channels, "user": opened.user}
    return OpenMessage(**{**values, "store": opened.store, **other})


@asynccontextmanager
async def talk(gateway: Gateway, session: Session, seed: int = 1) -> AsyncIterator[Talk]:
    url = f"{gateway.url}/ws/audio/{session.id}"
    async with aiohttp.ClientSession() as client, client.ws_connect(url, max_msg_size=1 << 20) as ws:
        yield Talk(ws, session, seed)


@pytest.fixture(scope="module")
def run(stack: LocalStack, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    with audio_run(stack, tmp_path_factory.mktemp("socket"), audio_silence_s=10.0, audio_session_idle_s=60.0) as run:
        yield run


@pytest.fixture(scope="module")
def gateways(run: Run) -> Iterator[tuple[Gateway, Gateway]]:
    both = (Gateway(run, "gateway-a"), Gateway(run, "gateway-b"))
    try:
        yield (both[0].start(), both[1].start())
    finally:
        for gateway in both:
            gateway.stop()


@pytest.fixture
def gateway(gateways: tuple[Gateway, Gateway]) -> Gateway:
    return gateways[0]


@pytest.fixture
def other(gateways: tuple[Gateway, Gateway]) -> Gateway:
    return gateways[1]


async def recorded(run: Run, session: Session, closed: ClosedMessage, gaps: list[list[int]] | None = None) -> None:
    """What was closed is what was sent, bit for bit."""
    assert closed.md5 == hashlib.md5(session.pcm).hexdigest()

    def tidy() -> bool:
        return len(run.objects(f"audio/{session.id}/")) == 2

    await asyncio.to_thread(run.until, tidy, "the segments are removed")
    manifest = await asyncio.to_thread(run.assert_recorded, session, gaps or [])
    assert manifest.recording == closed.recording


async def test_a_session_from_open_to_closed(run: Run, gateway: Gateway) -> None:
    session = new_session(1)
    async with aiohttp.ClientSession(gateway.url) as http, talk(gateway, session) as client:
        async with http.get(f"/api/audio/{session.id}") as unknown:
            assert unknown.status == 404 and unknown.content_type == "application/problem+json"
        assert await client.open() == 0
        await client.frames(0, 39)
        await client.durable(39)
        stored = await client.until(StoredMessage)
        assert isinstance(stored, StoredMessage) and 0 < stored.seq <= 39
        async with http.get(f"/api/audio/{session.id}") as answer:
            state = await answer.json()
            assert (answer.status, state["status"], state["next_seq"]) == (200, "open", 40)
        async with http.get(f"/api/audio/{session.id}/window") as answer:
            window = await answer.read()
            assert answer.content_type == "audio/wav" and session.pcm.endswith(window[44:]) and len(window) > 44
        async with http.get(f"/api/audio/{session.id}/download") as answer:
            assert answer.status == 409, await answer.text()
        closed = await client.close()
        assert await client.hear() is None and client.ws.close_code == 1000
        durable = [m.seq for m in client.heard if isinstance(m, DurableMessage)]
        assert durable == sorted(set(durable))
        await recorded(run, session, closed)
        await downloads(http, run, session)
    async with talk(gateway, session) as again:
        assert await again.open() == 40
        assert await again.until(ClosedMessage) == closed, "one that lost the word can ask for it"


async def downloads(http: aiohttp.ClientSession, run: Run, session: Session) -> None:
    (recording,) = (await asyncio.to_thread(run.objects, f"audio/{session.id}/recording.flac")).values()
    async with http.get(f"/api/audio/{session.id}/download", headers={"Accept": "application/json"}) as answer:
        link = await answer.json()
        assert link["sha256"] == hashlib.sha256(recording).hexdigest() and link["expires_in"] == 86_400
    async with aiohttp.request("GET", link["url"]) as answer:
        assert (answer.status, await answer.read()) == (200, recording)
    async with http.get(f"/api/audio/{session.id}/download") as answer:
        assert await answer.read() == recording, "a browser, or curl -L, is led to it"
    for path in ("", "/window", "/download"):
        async with http.get(f"/api/audio/nobody{path}") as answer:
            assert answer.status == 404
        async with http.get(f"/api/audio/no%20id{path}") as answer:
            assert answer.status == 400 and answer.content_type == "application/problem+json"


@pytest.mark.parametrize("where", ["same", "another"])
async def test_a_newer_connection_takes_over(run: Run, gateway: Gateway, other: Gateway, where: str) -> None:
    session = new_session(2)
    second = gateway if where == "same" else other
    async with talk(gateway, session) as first, talk(second, session) as then:
        assert await first.open() == 0
        await first.frames(0, 9)
        await first.durable(9)
        assert await then.open() == 10
        assert await first.error() == (ErrorCode.REPLACED, 1008)
        await then.frames(10, 19)
        await recorded(run, session, await then.close())
    resumed = [e for e in run.events() if isinstance(e, SessionResumed) and e.session_id == session.id]
    assert len(resumed) == 1


async def test_a_killed_gateway_loses_nothing_that_was_durable(run: Run, gateway: Gateway) -> None:
    session = new_session(3)
    kills = {40, 100}

    async def source() -> AsyncIterator[bytes]:
        for seq in range(160):
            if seq + 5 in kills:
                # What is sent from here on reaches nobody.
                gateway.process.signal(signal.SIGSTOP)
            if seq in kills:
                gateway.process.signal(signal.SIGKILL)
                gateway.process.ended(10)
                # Not from another thread: a process dies with the one that started it.
                gateway.start()
            session.chunks[seq] = noise(3, seq, session.opened)
            yield session.chunks[seq]
            await asyncio.sleep(0.01)

    sender = AudioSender(gateway.url, session.id, open_message(session), source(), give_up_s=60)
    sent = await sender.run()
    assert sent.connections >= 3 and sent.chunks == 160
    assert sent.md5 == sent.recorded_md5 == hashlib.md5(session.pcm).hexdigest()
    await recorded(run, session, ClosedMessage(sent.recording, sent.recorded_md5))


BAD: list[tuple[str, list[str | bytes], ErrorCode, int]] = [
    ("chunk before open", [encode_frame(Frame(0, 0, b"ab"))], ErrorCode.NOT_OPEN, 1008),
    ("close before open", ['{"type":"close"}'], ErrorCode.NOT_OPEN, 1008),
    ("bad JSON", ["{"], ErrorCode.BAD_MESSAGE, 1007),
    ("no message", ['{"type":"shut"}'], ErrorCode.BAD_MESSAGE, 1007),
    ("a large message", [" " * 10_000], ErrorCode.BAD_MESSAGE, 1007),
    ("an unknown format", ['{"type":"open","format":"mp3","rate":16000,"channels":1}'], ErrorCode.BAD_OPEN, 1008),
    ("a bad rate", ['{"type":"open","format":"pcm_s16le","rate":1,"channels":1}'], ErrorCode.BAD_OPEN, 1008),
    ("10 MB", ["OPEN", bytes(10_000_000)], ErrorCode.TOO_LARGE, 1009),
    ("odd length", ["OPEN", encode_frame(Frame(4, 0, b"odd"))], ErrorCode.BAD_CHUNK, 0),
    ("empty", ["OPEN", encode_frame(Frame(4, 0, b""))], ErrorCode.BAD_CHUNK, 0),
    ("no header", ["OPEN", b"abc"], ErrorCode.BAD_CHUNK, 0),
    ("bad seq", ["OPEN", encode_frame(Frame(1 << 50, 0, b"ab"))], ErrorCode.BAD_CHUNK, 0),
    ("bad time", ["OPEN", encode_frame(Frame(4, 1 << 60, b"ab"))], ErrorCode.BAD_CHUNK, 0),
    ("close twice", ["OPEN", '{"type":"close"}', '{"type":"close"}'], ErrorCode.ALREADY_CLOSED, 1008),
    ("after close", ["OPEN", '{"type":"close"}', encode_frame(Frame(4, 0, b"ab"))], ErrorCode.ALREADY_CLOSED, 1008),
    ("open twice", ["OPEN", "OPEN"], ErrorCode.CONFLICT, 1008),
    (
        "two formats",
        ['{"type":"open","format":"opus","rate":48000,"channels":1,"user":"u"}'],
        ErrorCode.CONFLICT,
        1008,
    ),
]


@pytest.mark.parametrize(("what", "said", "code", "close_code"), BAD, ids=[row[0] for row in BAD])
async def test_bad_input_is_told_and_does_no_harm(
    run: Run, gateway: Gateway, what: str, said: list[str | bytes], code: ErrorCode, close_code: int
) -> None:
    session = new_session(4)
    async with talk(gateway, session) as client:
        assert await client.open() == 0
        await client.frames(0, 3)
        await client.durable(3)
    async with talk(gateway, session) as bad:
        for word in said:
            if word == "OPEN":
                word = encode_message(open_message(session))
            await (bad.ws.send_str(word) if isinstance(word, str) else bad.ws.send_bytes(word))
        if close_code:
            assert await bad.error() == (code, close_code)
        else:
            message = await bad.until(ErrorMessage)
            assert isinstance(message, ErrorMessage) and message.code == code
            await bad.frames(4, 4)
            await bad.durable(4)
    async with talk(gateway, session) as client:
        last = max(session.chunks)
        assert await client.open() == last + 1
        if what in ("close twice", "after close"):
            closed = await client.until(ClosedMessage)
            assert isinstance(closed, ClosedMessage)
        else:
            await client.frames(last + 1, last + 3)
            closed = await client.close()
    await recorded(run, session, closed)


async def test_a_seq_that_goes_back_changes_nothing(run: Run, gateway: Gateway) -> None:
    session = new_session(5)
    async with talk(gateway, session) as client:
        assert await client.open() == 0
        await client.frames(0, 9)
        for seq in (9, 3, 0):
            await client.ws.send_bytes(encode_frame(Frame(seq, 0, b"other bytes.")))
        await client.frames(10, 12)
        await client.durable(12)
        closed = await client.close()
    await recorded(run, session, closed)


@pytest.mark.parametrize(
    "session_id",
    ["a%2Fb", "a/b", "%2e%2e", "%2e%2e%2fx", "a%00b", "a%0Ab", "a%7Fb", "ü", "x" * 1000, "a%20b", "x" * 129],
)
async def test_a_bad_session_id_is_told(gateway: Gateway, session_id: str) -> None:
    from yarl import URL

    url = URL(f"{gateway.url}/ws/audio/{session_id}".replace("ü", "%C3%BC"), encoded=True)
    async with aiohttp.ClientSession() as client, client.ws_connect(url) as ws:
        assert await Talk(ws, new_session(0), 0).error() == (ErrorCode.BAD_SESSION_ID, 1008)


async def test_a_page_of_another_site_may_not_connect(gateway: Gateway) -> None:
    async with aiohttp.ClientSession() as client:
        with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
            await client.ws_connect(f"{gateway.url}/ws/audio/x", origin="https://evil.example")
        assert refused.value.status == 403
        async with client.ws_connect(f"{gateway.url}/ws/audio/x", origin=gateway.url):
            pass


async def test_a_client_that_reads_nothing_is_cut_off_and_its_audio_kept(run: Run) -> None:
    session = new_session(5)
    short = Gateway(run, "gateway-c", audio_ping_s=0.5).start()
    try:
        async with talk(short, new_session(6)) as bystander:
            assert await bystander.open() == 0
            listening = asyncio.create_task(bystander.durable(4))
            await asyncio.to_thread(mute, short, session, 30)
            await asyncio.to_thread(
                run.until, lambda: run.state(session).get("next_seq") == 30, "what it sent is in Kafka", 20
            )
            await bystander.frames(0, 4)
            await listening
        assert short.process.rss_bytes < 400e6
    finally:
        short.stop()


def mute(gateway: Gateway, session: Session, chunks: int) -> None:
    """Sends a session without reading a byte after the handshake, until it is cut off."""
    with socket.create_connection(("127.0.0.1", gateway.process.settings.gateway_port)) as connection:
        connection.settimeout(20)
        head = f"GET /ws/audio/{session.id} HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
        connection.sendall(f"{head}Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {'A' * 22}==\r\n\r\n".encode())
        assert connection.recv(4096).startswith(b"HTTP/1.1 101")
        connection.sendall(masked(0x1, encode_message(open_message(session)).encode()))
        for seq in range(chunks):
            connection.sendall(masked(0x2, encode_frame(Frame(seq, 0, noise(5, seq, session.opened)))))
        deadline = time.monotonic() + 20
        with pytest.raises(OSError):
            while time.monotonic() < deadline:
                connection.sendall(masked(0x2, encode_frame(Frame(0, 0, noise(5, 0, session.opened)))))
                time.sleep(0.2)
        assert time.monotonic() < deadline, "it was not cut off"


def masked(opcode: int, payload: bytes) -> bytes:
    """A client's frame, masked with zeros."""
    size = len(payload)
    length = bytes([0x80 | size]) if size < 126 else b"\xfe" + size.to_bytes(2, "big")
    return bytes([0x80 | opcode]) + length + bytes(4) + payload


async def test_kafka_away_is_told_and_costs_nothing_that_was_durable(run: Run, gateway: Gateway) -> None:
    session = new_session(7)
    async with talk(gateway, session) as client:
        assert await client.open() == 0
        await client.frames(0, 9)
        await client.durable(9)
        run.stack.kafka.kill()
        try:
            await client.frames(10, 14)
            assert await client.error() == (ErrorCode.UNAVAILABLE, 1013)
            told = max(m.seq for m in client.heard if isinstance(m, DurableMessage))
        finally:
            run.stack.kafka.start()

    async def source() -> AsyncIterator[bytes]:
        for seq in range(40):
            session.chunks[seq] = noise(1, seq, session.opened)
            yield session.chunks[seq]

    sender = AudioSender(gateway.url, session.id, open_message(session), source(), give_up_s=90)
    sending = asyncio.create_task(sender.run())
    while not sending.done():
        run.worker.look()
        await asyncio.sleep(0.2)
    sent = await sending
    assert told == 9 and sent.durable == 39
    assert sent.md5 == sent.recorded_md5
    await recorded(run, session, ClosedMessage(sent.recording, sent.recorded_md5))
    assert all(key != b"" for key, _, _ in run.read(specs.AUDIO_DEADLETTER))


def test_the_readmes_client_sends_a_session(run: Run, gateway: Gateway, capsys: pytest.CaptureFixture[str]) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text("utf-8"), re.DOTALL)
    name = f"readme-{time.time_ns()}"
    exec(code.replace("ws://127.0.0.1:8080/ws/audio/talk-1", f"{gateway.url}/ws/audio/{name}"), {})  # noqa: S102
    told = capsys.readouterr().out.strip()
    assert told == str((f"audio/{name}/recording.flac", hashlib.md5(bytes(320_000)).hexdigest()))


def send_audio(gateway: Gateway, *arguments: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "compose.cli", "send-audio", "--url", gateway.url, "--json", *arguments]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def ended(process: subprocess.Popen[bytes]) -> tuple[int, dict[str, Any]]:
    out, err = process.communicate(timeout=60)
    assert out, err.decode()
    told: dict[str, Any] = json.loads(out)
    return process.returncode, told


@pytest.mark.parametrize("format", ["pcm_s16le", "flac", "opus"])
def test_send_audio_sends_a_file(run: Run, gateway: Gateway, tmp_path: Path, format: str) -> None:
    name = {"pcm_s16le": "a.wav", "flac": "a.flac", "opus": "a.ogg"}[format]
    kind = {"pcm_s16le": ["-f", "wav"], "flac": ["-f", "flac"], "opus": ["-c:a", "libopus", "-f", "ogg"]}[format]
    pcm = sound(8.0, 48_000, 2)
    (tmp_path / name).write_bytes(encoded(pcm, 48_000, 2, *kind))
    session = f"file-{format}-{time.time_ns()}"
    shape = ["--rate", "48000", "--channels", "2"] if format == "pcm_s16le" else []
    code, told = ended(send_audio(gateway, str(tmp_path / name), "--session", session, "--format", format, *shape))
    assert (code, told["ok"], told["error"]) == (0, True, None), told
    assert told["md5"] == told["recorded_md5"]
    if format == "pcm_s16le":
        assert told["md5"] == hashlib.md5(pcm).hexdigest()
    assert set(run.objects(told["recording"])) == {told["recording"]}


def test_send_audio_in_real_time_takes_as_long_as_it_plays(run: Run, gateway: Gateway, tmp_path: Path) -> None:
    kinds = {"flac": ["-f", "flac"], "opus": ["-c:a", "libopus", "-f", "ogg"]}
    played_s, processes = 5.0, {}
    for format, kind in kinds.items():
        (tmp_path / format).write_bytes(encoded(sound(played_s, 48_000, 2), 48_000, 2, *kind))
        named = ["--session", f"live-{format}-{time.time_ns()}", "--format", format]
        processes[format] = send_audio(gateway, str(tmp_path / format), "--realtime", *named)
    for format, process in processes.items():
        code, told = ended(process)
        assert (code, told["ok"], told["error"]) == (0, True, None), (format, told)
        assert told["md5"] == told["recorded_md5"] and told["connections"] == 1, (format, told)
        # The last chunk leaves when its sound begins.
        assert played_s - 1 < told["seconds"] < played_s + 10, (format, told)


def test_send_audio_says_when_the_recording_is_another(gateway: Gateway, tmp_path: Path) -> None:
    session = f"other-{time.time_ns()}"
    for number, expected in ((1, 0), (2, 1)):
        file = tmp_path / f"{number}.wav"
        file.write_bytes(encoded(sound(float(number), 16_000, 1), 16_000, 1, "-f", "wav"))
        code, told = ended(send_audio(gateway, str(file), "--session", session))
        assert code == expected, told
    assert "not what was sent" in told["error"]


def test_send_audio_closes_at_ctrl_c(run: Run, gateway: Gateway, tmp_path: Path) -> None:
    (tmp_path / "a.wav").write_bytes(encoded(sound(60.0, 16_000, 1), 16_000, 1, "-f", "wav"))
    session = f"interrupted-{time.time_ns()}"
    process = send_audio(gateway, str(tmp_path / "a.wav"), "--realtime", "--session", session)
    run.until(lambda: (json.loads(run.ask(f"/audio/{session}")[1] or b"{}").get("next_seq") or 0) > 8, "audio comes")
    process.send_signal(signal.SIGINT)
    code, told = ended(process)
    assert (code, told["ok"]) == (0, True), told
    assert 8 < told["chunks"] < 200 and told["md5"] == told["recorded_md5"]


def test_send_audio_of_what_is_no_audio(gateway: Gateway, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("words")
    process = send_audio(gateway, str(tmp_path / "a.txt"))
    _, err = process.communicate(timeout=30)
    assert process.returncode == 2 and b"cannot read" in err


async def test_status_shows_how_soon_chunks_are_durable(run: Run, gateway: Gateway) -> None:
    async with talk(gateway, new_session(7)) as client:
        await client.open()
        await client.frames(0, 3)
        await client.durable(3)
        environ = {**os.environ, **gateway.process.settings.environ()}
        command = [sys.executable, "-m", "compose.cli", "status", "--json"]
        done = await asyncio.to_thread(subprocess.run, command, env=environ, capture_output=True, timeout=60)
        found = json.loads(done.stdout)["gateway"]
        assert found["audio_chunks"] >= 4 and found["audio_connections"] >= 1
        assert found["audio_connections_limit"] == 2_000
        assert 0 < found["durable_p50_s"] <= found["durable_p99_s"]
        await client.close()


def test_sigterm_tells_clients_to_come_again(run: Run, gateway: Gateway) -> None:
    async def converse() -> tuple[ErrorCode, int | None]:
        async with talk(gateway, new_session(8)) as client:
            await client.open()
            os.kill(gateway.process.pid, signal.SIGTERM)
            return await client.error()

    try:
        assert asyncio.run(converse()) == (ErrorCode.UNAVAILABLE, 1013)
        assert gateway.process.ended(20) == 0
    finally:
        gateway.start()
