"""What audio does in the world, against a store and a log in memory that fail when they are told to."""

from __future__ import annotations

import asyncio
import hashlib
import io
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

import msgspec
import numpy as np
import pytest
import soundfile

from streams.audio.containers.ogg_opus import OggOpusReader
from streams.audio.effects import Assemble, Effect, PutSegment, RemoveSegments, Source
from streams.audio.held import Budget, Shelf
from streams.audio.logreader import LogGone
from streams.audio.objects import audio_of, segment_object
from streams.audio.outside import AudioOutside, OutsideLimits, World
from streams.runtime.outside import Seat
from tests.audiofold import opened, pcm
from topics.audio import Format, Open, Store
from topics.audio_events import ClosedBy, Manifest, decode_manifest
from topics.headers import header
from topics.records import Emit
from topics.specs import AUDIO_CHUNKS

PART = 100_000


class Away(Exception):
    """The store does not answer."""


class Spoiled(Exception):
    """The store holds other bytes."""


class Refused(Exception):
    """The store will never take it."""


class Objects:
    """An object store in memory. `errors` are raised one after the other, before anything is done."""

    def __init__(self) -> None:
        self.objects: dict[str, bytes] = {}
        self.errors: list[Exception] = []
        self.calls: list[str] = []
        self.lost = 0  # how often an upload is forgotten at its third part
        self.gate = asyncio.Event()
        self.gate.set()

    async def _called(self, call: str) -> None:
        self.calls.append(call)
        await self.gate.wait()
        if self.errors:
            raise self.errors.pop(0)

    async def put_verified(self, key: str, data: bytes, content_type: str | None = None) -> None:
        await self._called(f"put {key}")
        self.objects[key] = data

    async def read(self, key: str) -> AsyncIterator[bytes]:
        if key not in self.objects:
            raise Refused(f"there is no {key}")
        data = self.objects[key]
        for at in range(0, len(data), 70_000):
            yield data[at : at + 70_000]

    async def abandon(self, key: str) -> None:
        await self._called(f"abandon {key}")

    async def unfinished(self, key: str, part_bytes: int) -> None:
        return None

    async def upload(self, key: str, part_bytes: int, content_type: str | None = None, resume: Any = None) -> Sent:
        return Sent(self, key)

    async def keys(self, prefix: str) -> list[str]:
        return [key for key in self.objects if key.startswith(prefix)]

    async def delete_many(self, keys: Sequence[str]) -> None:
        await self._called("delete")
        for key in keys:
            self.objects.pop(key, None)


class Sent:
    """An upload that insists on equal parts, the first of which comes last."""

    def __init__(self, store: Objects, key: str) -> None:
        self._store, self._key = store, key

    async def send(self, parts: Callable[[], AsyncIterator[tuple[int, bytes]]]) -> None:
        while True:
            got: dict[int, bytes] = {}
            async for number, data in parts():
                await self._store._called(f"part {number}")
                got[number] = data
                if number == 3 and self._store.lost:
                    self._store.lost -= 1
                    break
            else:
                break
        assert list(got) == [*range(2, len(got) + 1), 1]
        assert all(len(got[number]) == PART for number in range(1, len(got)))
        self._store.objects[self._key] = b"".join(got[number] for number in sorted(got))


class Log:
    """Where chunks are read again."""

    def __init__(self, chunks: list[bytes] | None = None) -> None:
        self.held = chunks
        self.reads = 0

    async def chunks(self, partition: int, wanted: PutSegment) -> list[bytes]:
        self.reads += 1
        if self.held is None:
            raise LogGone("the log starts at 100")
        return self.held


class Desk:
    """An outside at work, and what it reports."""

    def __init__(self, log: Log | None = None, **limits: Any) -> None:
        self.store, self.log = Objects(), log or Log()
        self.reports: list[Emit] = []
        self.failed: list[BaseException] = []
        self.unwanted: list[Effect] = []
        self.shelf = Shelf(Budget(1 << 30))
        how = OutsideLimits(
            **{
                "part_bytes": PART,
                "backoff_s": lambda failures: 0.0,
                "refusals": (Refused,),
                "mismatches": (Spoiled,),
                "attempts": 4,
                **limits,
            }
        )
        seat = Seat(3, 1, self.reports.extend, self.failed.append)
        wanted = lambda effect: effect not in self.unwanted  # noqa: E731
        self.outside = AudioOutside(seat, World(self.store, self.log, how), self.shelf, wanted, AUDIO_CHUNKS)

    async def do(self, *effects: Effect) -> list[tuple[str, dict[str, Any]]]:
        """Do effects until all have ended; the outcomes reported."""
        self.outside.begin(effects)
        while self.outside.under_way:  # noqa: ASYNC110
            await asyncio.sleep(0.001)
        assert not self.failed, self.failed
        return self.told()

    def told(self) -> list[tuple[str, dict[str, Any]]]:
        """Types and bodies of the outcomes so far."""
        assert all((emit.topic, emit.partition, emit.key) == (AUDIO_CHUNKS, 3, b"s") for emit in self.reports)
        return [
            ((header(emit.headers, "type") or b"").decode(), msgspec.json.decode(emit.value or b""))
            for emit in self.reports
        ]


def put(opened_: Open, first: int, last: int) -> PutSegment:
    """The effect for a range."""
    return PutSegment(opened_, first, last, first + 10, last + 10)


def held(desk: Desk, opened_: Open, chunks: Sequence[bytes]) -> None:
    """Bytes of an intended segment are in memory."""
    desk.shelf.admit(opened_.session_id, 1 << 20)
    for seq, data in enumerate(chunks):
        desk.shelf.put(opened_.session_id, seq, data)
    desk.shelf.intend(opened_.session_id, 0, len(chunks) - 1, 0)


CHUNKS = [pcm("s", seq) for seq in range(5)]
KEY = "audio/s/segments/0000000000-0000000004.wav"


async def test_a_segment_is_put_as_a_file_that_plays() -> None:
    desk = Desk()
    held(desk, opened(), CHUNKS)
    ((kind, body),) = await desk.do(put(opened(), 0, 4))
    data = desk.store.objects[KEY]
    assert (kind, body["attempts"], body["size"]) == ("stored", 1, len(data))
    assert body["md5"] == hashlib.md5(data).hexdigest()
    samples, rate = soundfile.read(io.BytesIO(data), dtype="int16")
    assert (rate, samples.tobytes()) == (8_000, b"".join(CHUNKS))
    assert desk.log.reads == 0


async def test_what_memory_does_not_hold_is_read_from_the_log() -> None:
    desk = Desk(Log(CHUNKS))
    await desk.do(put(opened(), 0, 4))
    assert desk.log.reads == 1
    assert audio_of(opened(), desk.store.objects[KEY]) == [b"".join(CHUNKS)]


async def test_a_segment_is_tried_again_until_the_limit() -> None:
    desk = Desk(Log(CHUNKS))
    desk.store.errors = [Away("1"), Away("2"), Away("3")]
    ((kind, body),) = await desk.do(put(opened(), 0, 4))
    assert (kind, body["attempts"]) == ("stored", 4)
    desk = Desk(Log(CHUNKS))
    desk.store.errors = [Away(str(n)) for n in range(4)]
    ((kind, body),) = await desk.do(put(opened(), 0, 4))
    assert (kind, body) == ("failed", {"first_seq": 0, "last_seq": 4, "attempts": 4, "error": "3"})


async def test_an_attempt_that_finds_other_bytes_is_made_again_and_told() -> None:
    desk = Desk(Log(CHUNKS))
    desk.store.errors = [Away("1"), Spoiled("2"), Away("3")]
    ((kind, body),) = await desk.do(put(opened(), 0, 4))
    assert (kind, body["attempts"], body["damaged"]) == ("stored", 4, True)
    desk = Desk(Log(CHUNKS))
    desk.store.errors = [Spoiled(str(n)) for n in range(4)]
    ((kind, body),) = await desk.do(put(opened(), 0, 4))
    assert (kind, body["damaged"]) == ("failed", True)


@pytest.mark.parametrize("log", [None, CHUNKS], ids=["log gone", "refused"])
async def test_what_cannot_succeed_is_not_tried_again(log: list[bytes] | None) -> None:
    desk = Desk(Log(log))
    desk.store.errors = [Refused("no")]
    ((kind, body),) = await desk.do(put(opened(), 0, 4))
    assert (kind, body["attempts"]) == ("failed", 1)


async def test_an_attempt_that_hangs_is_given_up_and_made_again() -> None:
    desk = Desk(Log(CHUNKS), attempt_s=0.02)
    desk.store.gate.clear()
    desk.outside.begin([put(opened(), 0, 4)])
    while len(desk.store.calls) < 2:  # noqa: ASYNC110
        await asyncio.sleep(0.001)
    desk.store.gate.set()
    assert [kind for kind, _ in await desk.do()] == ["stored"]


async def test_bytes_on_their_way_are_not_dropped_and_others_are() -> None:
    desk = Desk(Log(CHUNKS))
    held(desk, opened(), CHUNKS)
    assert [unit.first_seq for unit in desk.shelf.idle_units()] == [0]
    assert desk.shelf.bytes_of("s", 0, 4) == CHUNKS
    desk.shelf.drop_oldest()
    assert desk.shelf.held == 0
    await desk.do(put(opened(), 0, 4))
    assert desk.log.reads == 1


async def test_what_has_its_outcome_already_is_not_done() -> None:
    desk = Desk(Log(CHUNKS))
    desk.unwanted = [put(opened(), 0, 4)]
    assert await desk.do(put(opened(), 0, 4)) == []
    assert desk.store.calls == []


async def test_removal_waits_for_puts_that_are_under_way() -> None:
    desk = Desk(Log(CHUNKS))
    desk.store.gate.clear()
    desk.outside.begin([put(opened(), 0, 4)])
    desk.outside.begin([RemoveSegments(opened(), ((0, 4),))])
    await asyncio.sleep(0.05)
    assert "delete" not in desk.store.calls
    desk.store.gate.set()
    assert [kind for kind, _ in await desk.do()] == ["stored", "removed"]
    assert desk.store.objects == {}


async def test_an_owner_that_gave_up_reports_nothing_and_holds_nothing() -> None:
    desk = Desk()
    held(desk, opened(), CHUNKS)
    desk.store.gate.clear()
    desk.outside.begin([put(opened(), 0, 4)])
    await asyncio.sleep(0.02)
    desk.outside.close()
    desk.store.gate.set()
    assert await desk.do() == []
    assert desk.shelf.held == desk.shelf.reserved == 0


# -- recordings ----------------------------------------------------------------------------------------------------


def assembly(desk: Desk, opened_: Open, segments: dict[tuple[int, int], list[bytes]], **other: Any) -> Assemble:
    """The effect for segments that are put into the store."""
    sources = []
    extension = {Format.PCM_S16LE: "wav", Format.OPUS: "ogg", Format.FLAC: "flac"}[opened_.format]
    for (first, last), chunks in segments.items():
        data = segment_object(opened_, chunks)
        desk.store.objects[f"audio/{opened_.session_id}/segments/{first:010d}-{last:010d}.{extension}"] = data
        sources.append(Source(first, last, sum(map(len, chunks)), len(data), hashlib.md5(data).hexdigest()))
    return Assemble(opened_, tuple(sources), other.get("failed", ()), 1, 2, ClosedBy.CLIENT)


def sound(seconds: int) -> bytes:
    """PCM that does not compress to nothing."""
    return np.random.default_rng(1).integers(-20_000, 20_000, seconds * 8_000).astype("<i2").tobytes()


@pytest.mark.parametrize("store", [Store.FLAC, Store.WAV])
@pytest.mark.parametrize("seconds", [1, 60], ids=["one part", "parts"])
async def test_a_recording_is_what_was_said_and_its_manifest_says_so(store: Store, seconds: int) -> None:
    desk, audio = Desk(), opened(store=store)
    said = sound(seconds)
    half = len(said) // 4 * 2
    effect = assembly(desk, audio, {(2, 4): [said[:half]], (9, 11): [said[half:]]}, failed=((5, 6),))
    ((kind, body),) = await desk.do(effect)
    assert kind == "recorded"
    data = desk.store.objects[body["key"]]
    assert body["key"] == f"audio/s/recording.{store}"
    samples, _ = soundfile.read(io.BytesIO(data), dtype="int16")
    assert samples.tobytes() == said
    manifest = decode_manifest(desk.store.objects["audio/s/manifest.json"])
    assert isinstance(manifest, Manifest)
    assert manifest.md5 == body["md5"] == hashlib.md5(said).hexdigest()
    assert manifest.sha256 == hashlib.sha256(data).hexdigest()
    assert (manifest.size_bytes, manifest.duration_ms) == (len(data), seconds * 1000)
    assert manifest.seqs == ((2, 4), (9, 11))
    assert manifest.gaps == ((0, 1), (7, 8))
    assert manifest.failed == ((5, 6),)


async def test_a_lost_upload_is_sent_again_the_same() -> None:
    desk, again = Desk(), Desk()
    again.store.lost = 2
    effect = assembly(desk, opened(), {(0, 9): [sound(60)]})
    again.store.objects = dict(desk.store.objects)
    await desk.do(effect)
    await again.do(effect)
    assert desk.store.objects == again.store.objects


async def test_so_many_recordings_at_once_and_segments_beside_them() -> None:
    desk = Desk(Log(CHUNKS), recordings=2, uploads=1)
    desk.store.gate.clear()
    desk.outside.begin([assembly(desk, opened(f"s{number}"), {(0, 4): CHUNKS}) for number in range(5)])
    desk.outside.begin([put(opened(f"live{number}"), 0, 4) for number in range(2)])
    async with asyncio.timeout(5):
        while len(desk.store.calls) < 3:  # noqa: ASYNC110
            await asyncio.sleep(0.001)
    await asyncio.sleep(0.05)
    assert sorted(desk.store.calls) == ["part 1", "part 1", f"put {KEY.replace('/s/', '/live0/')}"]
    desk.store.gate.set()
    while desk.outside.under_way:  # noqa: ASYNC110
        await asyncio.sleep(0.001)
    assert Counter(header(emit.headers, "type") for emit in desk.reports) == {b"recorded": 5, b"stored": 2}


async def test_opus_packets_come_out_as_they_came_in() -> None:
    desk = Desk()
    audio = opened(format=Format.OPUS, rate=48_000, store=Store.ASIS)
    packets = [bytes([0xFC, seq]) * 20 for seq in range(100)]
    ((kind, body),) = await desk.do(assembly(desk, audio, {(0, 59): packets[:60], (60, 99): packets[60:]}))
    assert (kind, body["md5"]) == ("recorded", hashlib.md5(b"".join(packets)).hexdigest())
    reader = OggOpusReader()
    assert reader.feed(desk.store.objects["audio/s/recording.ogg"]) == packets


async def test_a_flac_stream_is_kept_as_it_came() -> None:
    desk = Desk()
    audio = opened(format=Format.FLAC, store=Store.ASIS)
    ((kind, body),) = await desk.do(assembly(desk, audio, {(0, 1): [b"fLaC", b"xx"], (2, 2): [b"yy"]}))
    assert (kind, desk.store.objects[body["key"]]) == ("recorded", b"fLaCxxyy")


async def test_a_segment_that_is_gone_or_changed_makes_no_recording() -> None:
    gone = lambda store: store.pop(KEY)  # noqa: E731
    changed = lambda store: store.update({KEY: store[KEY][:-2] + b"!!"})  # noqa: E731
    for spoil, damaged in ((gone, False), (changed, True)):
        desk = Desk()
        effect = assembly(desk, opened(), {(0, 4): CHUNKS})
        spoil(desk.store.objects)
        ((kind, body),) = await desk.do(effect)
        assert kind == "unrecorded" and KEY in body["error"] and body.get("damaged", False) == damaged
        assert "audio/s/manifest.json" not in desk.store.objects
