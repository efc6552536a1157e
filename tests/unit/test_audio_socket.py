"""One audio connection against a log, an owner and a wire that do as they are told."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from streams.web.audio.durable import Durable
from streams.web.audio.hub import Hub
from streams.web.audio.owner import SessionState
from streams.web.audio.parts import SocketLimits, SocketParts
from streams.web.audio.socket import AudioSocket
from streams.web.metrics import AudioMetrics
from streams.web.owner import OwnerAway
from streams.web.publisher import HeadedRecord, Place, PublishUnavailable, Told
from topics.audio_events import (
    AudioEvent,
    ClosedBy,
    SegmentStored,
    SessionClosed,
    SessionRefused,
    SessionResumed,
    encode_event,
)
from topics.audio_socket import (
    ClosedMessage,
    CloseMessage,
    DurableMessage,
    ErrorCode,
    ErrorMessage,
    Frame,
    OpenMessage,
    ResumeMessage,
    StoredMessage,
    decode_server_message,
    encode_frame,
    encode_message,
)

OPEN = OpenMessage("pcm_s16le", 16_000, 1)
KNOWN = {"user": "", "format": "pcm_s16le", "rate": 16_000, "channels": 1, "tier": "standard", "store": "flac"}
AT = {"session_id": "s", "source_partition": 0}


class Log:
    """Keeps records; `gate` holds confirmations up, `trouble` is a Kafka that is away."""

    def __init__(self) -> None:
        self.records: list[dict[str, bytes | None]] = []
        self._waiting: list[tuple[HeadedRecord, Told]] = []
        self._posting: asyncio.Task[None] | None = None
        self.trouble = ""
        self.gate = asyncio.Event()
        self.gate.set()
        self.crowded = False
        self.for_room: list[Callable[[], None]] = []
        self.asked = asyncio.Event()

    def when_room(self, call: Callable[[], None]) -> None:
        self.for_room.append(call)
        self.asked.set()

    async def append(self, records: Sequence[HeadedRecord]) -> Place:
        await self.gate.wait()
        if self.trouble:
            raise PublishUnavailable(self.trouble)
        first = len(self.records)
        self.records += [{**dict(headers), "key": key, "value": value} for key, value, headers in records]
        return Place(0, first)

    def post(self, record: HeadedRecord, told: Told) -> None:
        self._waiting.append((record, told))
        if self._posting is None or self._posting.done():
            self._posting = asyncio.create_task(self._post())

    async def _post(self) -> None:
        while self._waiting:
            await self.gate.wait()
            taken, self._waiting = self._waiting, []
            for record, told in taken:
                try:
                    told(await self.append([record]))
                except PublishUnavailable as error:
                    told(error)

    @property
    def seqs(self) -> list[int]:
        return [int(r["seq"] or b"") for r in self.records if r["type"] == b"chunk"]


class Owner:
    def __init__(self) -> None:
        self.known = SessionState("open", 1, **KNOWN)
        self.away = False
        self.asked: list[Place] = []
        self.held: dict[int, asyncio.Event] = {}  # answers, by the offset of the open

    async def state(self, session_id: str, after: Place, within_s: float) -> SessionState:
        self.asked.append(after)
        if after.offset in self.held:
            await self.held[after.offset].wait()
        if self.away:
            raise OwnerAway("nobody is there")
        return self.known


class Wire:
    """Messages from the client come out of a queue; with `stuck` the client takes nothing."""

    def __init__(self) -> None:
        self.pinged_s: float | None = None
        self.too_large = False
        self.said: asyncio.Queue[bytes | str | None] = asyncio.Queue()
        self.heard: list[Any] = []
        self.pings = 0
        self.ended: tuple[int, str] | str | None = None
        self.stuck = False

    async def receive(self) -> bytes | str | None:
        return None if self.ended else await self.said.get()

    async def send(self, text: str) -> None:
        if self.stuck:
            await asyncio.Event().wait()
        self.heard.append(decode_server_message(text))

    def offer(self, text: str) -> bool:
        if self.stuck or self.ended:
            return False
        self.heard.append(decode_server_message(text))
        return True

    async def ping(self) -> None:
        self.pings += 1
        self.pinged_s = self.pinged_s or asyncio.get_running_loop().time()

    async def close(self, code: int, reason: str) -> None:
        self.ended = (int(code), reason)
        self.said.put_nowait(None)

    def abort(self) -> None:
        self.ended = "aborted"
        self.said.put_nowait(None)


@dataclass
class Table:
    """What the tests' connections share."""

    log: Log = field(default_factory=Log)
    owner: Owner = field(default_factory=Owner)
    hub: Hub = field(default_factory=Hub)
    metrics: AudioMetrics = field(default_factory=lambda: AudioMetrics(CollectorRegistry()))

    def tell(self, event: AudioEvent) -> None:
        self.hub.note(b"s", encode_event(event))

    @asynccontextmanager
    async def connection(self, name: str = "c1", **limits: Any) -> AsyncIterator[Client]:
        following = asyncio.Event()
        following.set()
        own = SocketLimits(**{"durable_every_s": 0.005, **limits})
        wire = Wire()
        parts = SocketParts(self.log, self.owner, self.hub, following, self.metrics, own)
        task = asyncio.create_task(AudioSocket("s", name, wire, parts).run())
        try:
            yield Client(wire, task)
        finally:
            wire.said.put_nowait(None)
            await asyncio.wait_for(task, 10)


@dataclass
class Client:
    wire: Wire
    task: asyncio.Task[None]

    def say(self, *words: Any) -> None:
        for word in words:
            self.wire.said.put_nowait(word if isinstance(word, bytes | str) else encode_message(word))

    def chunks(self, *seqs: int, data: bytes = b"ab") -> None:
        self.say(*(encode_frame(Frame(seq, 0, data)) for seq in seqs))

    async def hears(self, message: Any) -> None:
        async with asyncio.timeout(5):
            while message not in self.wire.heard:  # noqa: ASYNC110
                await asyncio.sleep(0.002)

    async def ends(self, code: ErrorCode, close_code: int) -> str:
        await asyncio.wait_for(asyncio.shield(self.task), 5)
        assert self.wire.ended == (close_code, code.value)
        error = self.wire.heard[-1]
        assert isinstance(error, ErrorMessage) and error.code == code
        return error.message


@pytest.fixture
def table() -> Table:
    return Table()


async def test_open_chunks_close_closed(table: Table) -> None:
    async with table.connection() as client:
        client.say(OPEN)
        await client.hears(ResumeMessage(0))
        client.chunks(0, 1, 2)
        await client.hears(DurableMessage(2))
        stored = {"key": "k", "size_bytes": 1, "md5": "", "duration_ms": 1, "first_offset": 1, "source_offset": 9}
        table.tell(SegmentStored(first_seq=0, last_seq=1, stored_seq=1, **stored, **AT))
        await client.hears(StoredMessage(1))
        client.say(CloseMessage())
        over = {"duration_ms": 1, "size_bytes": 1, "gaps": 0, "source_offset": 12, "closed_by": ClosedBy.CLIENT}
        await asyncio.sleep(0.02)
        table.tell(SessionClosed(recording="r", md5="m", **over, **AT))
        await client.hears(ClosedMessage("r", "m"))
        await asyncio.wait_for(asyncio.shield(client.task), 5)
        assert client.wire.ended == (1000, "closed")
    assert [r["type"] for r in table.log.records] == [b"open", b"chunk", b"chunk", b"chunk", b"close"]
    assert {r["key"] for r in table.log.records} == {b"s"}
    assert (table.log.records[0]["refuse"], table.log.records[0]["connection"]) == (b"1", b"c1")


async def test_durable_is_told_only_of_what_kafka_confirmed_and_in_few_messages(table: Table) -> None:
    async with table.connection(durable_every_s=0.02) as client:
        client.say(OPEN)
        await client.hears(ResumeMessage(0))
        table.log.gate.clear()
        client.chunks(*range(500))
        await asyncio.sleep(0.05)
        assert not any(isinstance(m, DurableMessage) for m in client.wire.heard)
        table.log.gate.set()
        await client.hears(DurableMessage(499))
    assert table.log.seqs == list(range(500))
    assert sum(isinstance(m, DurableMessage) for m in client.wire.heard) < 10


async def test_resume_comes_from_the_owner_once_it_has_folded_this_open(table: Table) -> None:
    table.owner.known = SessionState("open", 8, next_seq=7, stored_seq=4, **KNOWN)
    async with table.connection() as client:
        client.say(OPEN)
        await client.hears(StoredMessage(4))
        assert client.wire.heard[0] == ResumeMessage(7)
        assert table.owner.asked == [Place(0, 0)]
        client.chunks(7, 8)
        await client.hears(DurableMessage(8))


@pytest.mark.parametrize("when", ["at once", "while it lives"])
async def test_kafka_away_ends_the_connection_and_what_waits_is_never_called_durable(table: Table, when: str) -> None:
    async with table.connection() as client:
        if when == "at once":
            table.log.trouble = "no broker answers"
        client.say(OPEN)
        if when != "at once":
            await client.hears(ResumeMessage(0))
            client.chunks(0)
            await client.hears(DurableMessage(0))
            table.log.trouble = "no broker answers"
            client.chunks(1, 2)
        assert "no broker answers" in await client.ends(ErrorCode.UNAVAILABLE, 1013)
    assert max((m.seq for m in client.wire.heard if isinstance(m, DurableMessage)), default=0) == 0


async def test_an_owner_that_is_away_is_told(table: Table) -> None:
    table.owner.away = True
    async with table.connection() as client:
        client.say(OPEN)
        await client.ends(ErrorCode.UNAVAILABLE, 1013)


@pytest.mark.parametrize("how", ["state", "event"])
async def test_a_refused_session_is_told(table: Table, how: str) -> None:
    refused = SessionRefused(user="", code="memory", message="full", source_offset=0, **AT)
    if how == "state":
        table.owner.known = SessionState("refused", 1, error="full", **KNOWN)
    async with table.connection() as client:
        client.say(OPEN)
        if how == "event":
            await client.hears(ResumeMessage(0))
            table.tell(refused)
        assert await client.ends(ErrorCode.REFUSED, 1013) == "full"
    (refusals,) = table.metrics.refused.collect()
    assert refusals.samples[0].value == 1


async def test_a_refusal_from_before_is_not_about_this_connection(table: Table) -> None:
    table.log.records = [{"type": b"old", "seq": b"0"}] * 5
    async with table.connection() as client:
        client.say(OPEN)
        await client.hears(ResumeMessage(0))
        table.tell(SessionRefused(user="", code="memory", message="full", source_offset=4, **AT))
        client.chunks(0)
        await client.hears(DurableMessage(0))


async def test_the_connection_whose_open_lies_further_on_has_the_session(table: Table) -> None:
    table.log.records = [{"type": b"old", "seq": b"0"}] * 5
    async with table.connection() as client:
        client.say(OPEN)
        await client.hears(ResumeMessage(0))
        table.tell(SessionResumed(connection="c1", source_offset=5, **AT))
        table.tell(SessionResumed(connection="c0", source_offset=3, **AT))
        client.chunks(0)
        await client.hears(DurableMessage(0))
        table.tell(SessionResumed(connection="c2", source_offset=9, **AT))
        await client.ends(ErrorCode.REPLACED, 1008)


async def test_a_second_connection_here_takes_over_once_it_has_resumed(table: Table) -> None:
    async with table.connection("c1") as first, table.connection("c2") as second, table.connection("c3") as third:
        first.say(OPEN)
        await first.hears(ResumeMessage(0))
        second.say(OpenMessage("opus", 48_000, 1))
        await second.ends(ErrorCode.CONFLICT, 1008)
        first.chunks(0)
        await first.hears(DurableMessage(0))
        third.say(OPEN)
        await third.hears(ResumeMessage(0))
        await first.ends(ErrorCode.REPLACED, 1008)
        third.chunks(0)
        await third.hears(DurableMessage(0))


async def test_an_older_connection_that_is_answered_first_ends_no_newer_one(table: Table) -> None:
    table.owner.held = {0: asyncio.Event(), 1: asyncio.Event()}
    async with table.connection("c1") as older, table.connection("c2") as newer:
        older.say(OPEN)
        async with asyncio.timeout(5):
            while len(table.owner.asked) < 1:  # noqa: ASYNC110
                await asyncio.sleep(0.002)
            newer.say(OPEN)
            while len(table.owner.asked) < 2:  # noqa: ASYNC110
                await asyncio.sleep(0.002)
        table.owner.held[0].set()
        await older.hears(ResumeMessage(0))
        table.owner.held[1].set()
        await newer.hears(ResumeMessage(0))
        await older.ends(ErrorCode.REPLACED, 1008)
        newer.chunks(0)
        await newer.hears(DurableMessage(0))


async def test_no_more_is_read_than_may_wait_for_kafka(table: Table) -> None:
    async with table.connection(unconfirmed_bytes=1_000) as client:
        client.say(OPEN)
        await client.hears(ResumeMessage(0))
        table.log.gate.clear()
        client.chunks(*range(100), data=bytes(100))
        await asyncio.sleep(0.05)
        assert client.wire.said.qsize() >= 89
        table.log.gate.set()
        await client.hears(DurableMessage(99))


async def test_while_kafka_is_behind_with_all_a_client_is_read_no_more(table: Table) -> None:
    async with table.connection() as client:
        client.say(OPEN)
        await client.hears(ResumeMessage(0))
        table.log.crowded = True
        client.chunks(*range(10))
        async with asyncio.timeout(5):
            await table.log.asked.wait()
        assert table.log.seqs == [0] and client.wire.said.qsize() == 9
        table.log.crowded = False
        table.log.for_room[-1]()
        await client.hears(DurableMessage(9))


async def test_a_client_that_takes_nothing_is_cut_off(table: Table) -> None:
    async with table.connection(write_s=0.05) as client:
        client.say(OPEN)
        await client.hears(ResumeMessage(0))
        client.wire.stuck = True
        client.chunks(0)
        await asyncio.wait_for(asyncio.shield(client.task), 5)
        assert client.wire.ended == "aborted"


async def test_a_client_that_answers_no_ping_is_cut_off(table: Table) -> None:
    async with table.connection(ping_s=0.05) as client:
        client.say(OPEN)
        await asyncio.wait_for(asyncio.shield(client.task), 5)
        assert client.wire.ended == "aborted" and client.wire.pings >= 2


async def test_an_idle_connection_is_ended(table: Table) -> None:
    async with table.connection(idle_s=0.1) as client:
        client.say(OPEN)
        await client.ends(ErrorCode.IDLE, 1001)
    async with table.connection(idle_s=0.1, resume_s=0.1) as client:
        await client.ends(ErrorCode.IDLE, 1001)


async def test_what_was_read_is_sent_though_the_client_is_gone(table: Table) -> None:
    async with table.connection() as client:
        client.say(OPEN)
        await client.hears(ResumeMessage(0))
        table.log.gate.clear()
        client.chunks(0, 1)
        client.wire.said.put_nowait(None)
        await asyncio.sleep(0.02)
        table.log.gate.set()
    assert table.log.seqs == [0, 1]


@pytest.mark.parametrize("then", [None, CloseMessage()], ids=["goes", "closes twice"])
async def test_a_close_is_sent_whatever_the_client_does_next(table: Table, then: CloseMessage | None) -> None:
    async with table.connection() as client:
        client.say(OPEN)
        await client.hears(ResumeMessage(0))
        table.log.gate.clear()
        client.say(CloseMessage())
        if then is None:
            client.wire.said.put_nowait(None)
        else:
            client.say(then)
        await asyncio.sleep(0.05)
        table.log.gate.set()
    assert [r["type"] for r in table.log.records] == [b"open", b"close"]


async def test_good_audio_before_a_bad_message_is_durable_first(table: Table) -> None:
    async with table.connection() as client:
        client.say(OPEN)
        await client.hears(ResumeMessage(0))
        client.chunks(0, 1)
        client.say("{")
        await client.ends(ErrorCode.BAD_MESSAGE, 1007)
    assert DurableMessage(1) in client.wire.heard


async def test_a_session_that_is_over_is_told_so_at_once(table: Table) -> None:
    table.owner.known = SessionState("closed", 1, next_seq=9, recording="r", md5="m", **KNOWN)
    async with table.connection() as client:
        client.say(OPEN)
        await client.hears(ClosedMessage("r", "m"))
        assert client.wire.heard == [ResumeMessage(9), ClosedMessage("r", "m")]


async def test_a_closed_that_no_event_told_is_asked_for(table: Table, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("streams.web.audio.watch._ASK_CLOSED_S", 0.05)
    async with table.connection(ping_s=0.1) as client:
        client.say(OPEN)
        await client.hears(ResumeMessage(0))
        client.say(CloseMessage())
        await asyncio.sleep(0.02)
        table.owner.known = SessionState("closed", 9, recording="r", md5="m", **KNOWN)
        await client.hears(ClosedMessage("r", "m"))


async def test_the_gateways_end_is_told(table: Table) -> None:
    async with table.connection() as client:
        client.say(OPEN)
        await client.hears(ResumeMessage(0))
        await table.hub.stop(5)
        await client.ends(ErrorCode.UNAVAILABLE, 1013)


def test_durable_passes_a_gap_only_when_it_is_lost() -> None:
    durable = Durable(0, lost_after=3)

    def add(*seqs: int) -> None:
        for seq in seqs:
            durable.add(seq)

    assert durable.last is None
    add(0, 1, 4, 3)
    assert durable.last == 1
    add(2)
    assert durable.last == 4
    add(6, 7, 8)
    assert durable.last == 4
    add(9)
    assert durable.last == 9
    add(12, 5)
    durable.finish()
    assert durable.last == 12
