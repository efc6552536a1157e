"""A crowd of audio sessions made from a seed: clients that send again, out of order and not at all; and what came of it.

What each client said is kept here, apart from the product: at the end the recordings, manifests, events and rows are held
against it.
"""

from __future__ import annotations

import asyncio
import hashlib
import io
import itertools
import random
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import soundfile

from compose.audio_client import AudioSender
from tests.audiostack import Gateway, Run, Session, new_session, noise
from topics import specs
from topics.audio import Chunk, Close, Format, Store, Tier
from topics.audio_events import SegmentStored
from topics.audio_socket import OpenMessage

#: Chunks that a client says at once, in any order: what half a second of reordering takes in.
BLOCK = 4
_LOST, _TWICE, _LATER = 0.02, 0.1, 0.05
_LATER_BLOCKS = 10
#: An Opus packet of one frame of 60 ms.
_OPUS_60_MS = bytes([3 << 3])

KINDS: tuple[dict[str, Any], ...] = (
    {"store": Store.FLAC},
    {"format": Format.OPUS, "rate": 48_000, "store": Store.ASIS},
    {"tier": Tier.PREMIUM, "store": Store.WAV},
    {"format": Format.FLAC, "tier": Tier.PREMIUM, "store": Store.ASIS},
    {"rate": 8_000, "channels": 2, "tier": Tier.PREMIUM},
)
#: Long enough for a recording of several parts.
BIG: dict[str, Any] = {"rate": 96_000, "channels": 2, "store": Store.WAV}


@dataclass
class Client(Session):
    """A session and its client's plan: which seqs it sends in which block. `closes` tells whether it says that it is done."""

    number: int = 0
    blocks: list[list[int]] = field(default_factory=list)
    length: int = 0
    closes: bool = True
    _stream: list[bytes] = field(default_factory=list)

    def data(self, seq: int) -> bytes:
        """A chunk's bytes, the same whenever they are asked for."""
        match self.opened.format:
            case Format.PCM_S16LE:
                return noise(self.number, seq, self.opened)
            case Format.OPUS:
                return _OPUS_60_MS + random.Random(self.number * 1_000_003 + seq).randbytes(160)
            case Format.FLAC:
                if not self._stream:
                    self._stream = _flac(self.number, self.length, self.opened.rate)
                return self._stream[seq]

    @property
    def md5(self) -> str:
        """Of all that it said."""
        return hashlib.md5(self.pcm).hexdigest()


class Crowd:
    """`count` clients of Kafka, a tenth of whom just fall silent, and one for each of `gateways`, all with sessions at once."""

    def __init__(self, run: Run, count: int, chunks: int, seed: int, gateways: Sequence[Gateway] = ()) -> None:
        self.run = run
        self._rng = random.Random(seed)
        self.clients = [self._client(number, chunks) for number in range(count)]
        self._callers = [new_client(count + i, chunks, **KINDS[0]) for i in range(len(gateways))]
        self._calls: list[Future[None]] = []
        self._gateways = gateways
        self._said = 0

    def _client(self, number: int, chunks: int) -> Client:
        rng = self._rng
        kind = BIG if number == 5 else KINDS[number % len(KINDS)]
        silent = number % 10 == 9
        # Sessions end one after another, and those that end by silence soon enough to do it among the others.
        length = chunks // 3 if silent else chunks if kind is BIG else rng.randrange(chunks // 2, chunks + 1)
        client = new_client(number, length, **kind)
        client.closes = not silent
        lost = {seq + more for seq in range(length) if rng.random() < _LOST for more in range(rng.randrange(1, 4))}
        for at in range(0, length, BLOCK):
            block = [seq for seq in range(at, min(at + BLOCK, length)) if seq not in lost]
            rng.shuffle(block)
            block += [seq for seq in block if rng.random() < _TWICE]
            if len(client.blocks) > _LATER_BLOCKS:
                block += [seq for seq in client.blocks[-_LATER_BLOCKS] if rng.random() < _LATER]
            client.blocks.append(block)
        return client

    # -- the clients ---------------------------------------------------------------------------------------------

    def talk(self, pause_s: float, at: Mapping[int, Callable[[], object]] | None = None) -> None:
        """Say everything, one block each `pause_s`; before the block of a number in `at`, do that."""
        talker, length = self.run.talker, max(len(client.blocks) for client in self.clients)
        for client in self.clients:
            talker.say(client.opened)
        self._calls = [
            ThreadPoolExecutor(1).submit(asyncio.run, self._call(caller, gateway, pause_s))
            for caller, gateway in zip(self._callers, self._gateways, strict=True)
        ]
        for number in range(length + 1):
            begun = time.monotonic()
            (at or {}).get(number, bool)()
            for client in self.clients:
                self._say(client, number)
            talker.flush()
            self.run.look()
            for gateway in self._gateways:
                gateway.process.look()
            time.sleep(max(0.0, pause_s - (time.monotonic() - begun)))

    def _say(self, client: Client, number: int) -> None:
        for seq in client.blocks[number] if number < len(client.blocks) else ():
            client.chunks[seq] = client.data(seq)
            self.run.talker.say(Chunk(client.id, seq, 0, None, client.chunks[seq]))
            self._said += 1
        if number == len(client.blocks) and client.closes:
            self.run.talker.say(Close(client.id))

    async def _call(self, caller: Client, gateway: Gateway, pause_s: float) -> None:
        async def source() -> AsyncIterator[bytes]:
            for seq in range(caller.length):
                await asyncio.sleep(pause_s / BLOCK)
                caller.chunks[seq] = caller.data(seq)
                yield caller.chunks[seq]

        opened = caller.opened
        asked = OpenMessage(opened.format, opened.rate, opened.channels, opened.user, opened.tier, opened.store)
        sent = await AudioSender(gateway.url, caller.id, asked, source()).run()
        assert sent.recorded_md5 == caller.md5, sent

    # -- what came of it -----------------------------------------------------------------------------------------

    def settle(self, deadline_s: float) -> None:
        """Wait until ClickHouse shows that all sessions are closed and their segments removed."""

        def settled() -> bool:
            for gateway in self._gateways:
                gateway.process.look()
            return not self._open() and not self._rows(
                "SELECT session_id FROM audio_segments WHERE status != 'removed'"
            )

        self.run.until(settled, "all sessions are closed, all segments removed", deadline_s)
        for call in self._calls:
            call.result(deadline_s)

    def _open(self) -> set[str]:
        closed = {name for (name,) in self._rows("SELECT session_id FROM audio_sessions WHERE status = 'closed'")}
        return {session.id for session in self.sessions} - closed

    @property
    def sessions(self) -> list[Client]:
        """All of them."""
        return [*self.clients, *self._callers]

    def _rows(self, sql: str) -> list[tuple[Any, ...]]:
        names = {session.id for session in self.sessions}
        return [row for row in self.run.rows(sql) if row[0] in names]

    def assert_exact(self) -> dict[str, int]:
        """Every session's recording, manifest, events and rows are what was said, and nothing is beside them; in figures."""
        run = self.run
        swept = run.clean()
        assert run.uploads() == []
        for session in self.sessions:
            run.assert_recorded(session, session.gaps)
        self._assert_segments()
        self._assert_told()
        assert run.read(specs.AUDIO_DEADLETTER) == []
        chunks = sum(len(session.chunks) for session in self.sessions)
        return {
            "sessions": len(self.sessions),
            "chunks": chunks,
            "sent_again": self._said - sum(len(client.chunks) for client in self.clients),
            "gaps": sum(len(session.gaps) for session in self.sessions),
            "swept": len(swept["removed"]),
            "differences": 0,
        }

    def _assert_segments(self) -> None:
        """Each chunk is in one segment of the table, and each session has its figures."""
        held: dict[str, list[int]] = {session.id: [] for session in self.sessions}
        for name, first, last in self._rows("SELECT session_id, first_seq, last_seq FROM audio_segments"):
            held[name] += range(first, last + 1)
        figures = {name: rest for name, *rest in self._rows("SELECT session_id, seqs, gaps, md5 FROM audio_sessions")}
        for session in self.sessions:
            assert sorted(held[session.id]) == sorted(session.chunks), f"{session.id}: a chunk in no segment, or in two"
            lost = sum(last - first + 1 for first, last in session.gaps)
            assert figures[session.id] == [len(session.chunks), lost, session.md5]

    def _assert_told(self) -> None:
        """No event is told twice, and those of segments are what the table has."""
        events = self.run.events()
        told = Counter(
            (type(e).__name__, e.session_id, getattr(e, "first_seq", None), getattr(e, "connection", None))
            for e in events
        )
        assert not [event for event, times in told.items() if times > 1]
        stored = sorted((e.session_id, e.first_seq, e.last_seq) for e in events if isinstance(e, SegmentStored))
        assert stored == sorted(self._rows("SELECT session_id, first_seq, last_seq FROM audio_segments"))
        for kind in ("SessionOpened", "SessionClosed"):
            assert sum(name == kind for name, *_ in told) == len(self.sessions)


def new_client(number: int, length: int, **kind: Any) -> Client:
    """A client of so many chunks."""
    return Client(new_session(number, **kind).opened, number=number, length=length)


def _flac(seed: int, chunks: int, rate: int) -> list[bytes]:
    """A FLAC stream of noise, cut anywhere into so many pieces."""
    rng = random.Random(seed)
    samples = np.frombuffer(rng.randbytes(chunks * 4096), dtype="<i2")
    file = io.BytesIO()
    soundfile.write(file, samples, rate, format="FLAC", subtype="PCM_16")
    data = file.getvalue()
    cuts = [0, *sorted(rng.sample(range(1, len(data)), chunks - 1)), len(data)]
    return [data[a:b] for a, b in itertools.pairwise(cuts)]
