"""Whatever lies on the topic, a worker accounts for each record once, with its reason, coordinates and bytes, and goes on.

All of it is sent at once, good and bad mixed in the same fetches; the tests then look at one thing each.
"""

from __future__ import annotations

import asyncio
import json
import random
import re
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import boto3
import cramjam
import pytest
from aiokafka import TopicPartition
from aiokafka.client import AIOKafkaClient
from aiokafka.protocol.produce import ProduceRequest
from confluent_kafka import Consumer, KafkaError, Producer
from confluent_kafka import TopicPartition as Place

from compose.local.stack import LocalStack
from tests.chaos.driver import PARTITIONS, Run, chaos_run
from tests.recordbatch import ENCODERS, Raw, plain_records, record_batch, sealed
from tests.traffic import HOUR_MS, event
from topics.partitioning import partition_of
from topics.specs import TRAFFIC_DEADLETTER, TRAFFIC_EVENTS

pytestmark = pytest.mark.stack

CODECS = ("none", "gzip", "snappy", "lz4", "zstd")
MB = 1_000_000
Header = tuple[str, bytes | None]


@dataclass(frozen=True)
class Bad:
    """A record that can never succeed, and what is to be said of it."""

    value: bytes | None
    reason: str
    error: str = ""
    key: bytes | None = b"k"
    headers: Sequence[Header] = ()
    partition: int | None = None
    codec: str = "none"


def _home(event_id: str) -> int:
    return partition_of(event_id.encode(), PARTITIONS)


def _bad(now_ms: int) -> dict[str, Bad]:
    """Everything that is to become a dead letter, by name."""

    def mended(**fields: Any) -> bytes:
        return event("x", now_ms, **fields)

    def away(hours: float) -> Bad:
        value = event("away", now_ms + round(hours * HOUR_MS))
        reason, error = ("early", "24 h are allowed") if hours > 0 else ("late", "72 h are allowed")
        return Bad(value, reason, error, b"away", partition=_home("away"))

    astray = (_home("astray") + 1) % PARTITIONS
    return {
        "not JSON": Bad(b"GET / HTTP/1.1", "not_json"),
        "cut JSON": Bad(mended()[:-5], "not_json", "truncated"),
        "not UTF-8": Bad(b'{"event_id": "\xff\xfe"}', "not_json", "utf-8"),
        "half a surrogate pair": Bad(mended().replace(b'"x"', b'"\\ud800"'), "not_json"),
        "deep JSON": Bad(b'{"a":' * 100_000, "not_json", "recursion"),
        "an array": Bad(b"[" + mended() + b"]", "invalid", "`object`"),
        "null": Bad(b"null", "invalid"),
        "NaN": Bad(mended(response_time_ms=float("nan")), "not_json"),
        "infinite": Bad(mended(response_time_ms=float("inf")), "not_json"),
        "beyond a float": Bad(mended(response_time_ms=0).replace(b'ms": 0', b'ms": 1e999'), "invalid"),
        "negative time": Bad(event("x", -1), "invalid", "timestamp_ms"),
        "negative response time": Bad(mended(response_time_ms=-0.001), "invalid", "response_time_ms"),
        "negative bytes": Bad(mended(bytes=-1), "invalid", "bytes"),
        "microseconds": Bad(event("x", now_ms * 1000), "invalid", "timestamp_ms"),
        "a status in words": Bad(mended(status="200"), "invalid", "status"),
        "a fraction of a status": Bad(mended(status=200.5), "invalid", "status"),
        "status 99": Bad(mended(status=99), "invalid", "status"),
        "no path": Bad(mended(path=None), "invalid", "`path`"),
        "no id": Bad(event(None, now_ms), "invalid", "`event_id`"),
        "an empty id": Bad(event("", now_ms), "invalid", "event_id"),
        "an id too long": Bad(event("i" * 129, now_ms), "invalid", "event_id"),
        "1 MB path": Bad(mended(path="/" + "p" * MB), "invalid", "path"),
        "bad IPv4": Bad(mended(client_ip="256.1.1.1"), "invalid", "256.1.1.1"),
        "bad IPv6": Bad(mended(client_ip="::g"), "invalid", "::g"),
        "a host for an IP": Bad(mended(client_ip="localhost"), "invalid", "localhost"),
        "a number in dimensions": Bad(mended(dimensions={"zone": 1}), "invalid", "dimensions"),
        "empty": Bad(b"", "empty"),
        "tombstone": Bad(None, "tombstone"),
        "tombstone without key": Bad(None, "tombstone", key=None),
        "a day and an hour ahead": away(25),
        "three days and an hour ago": away(-73),
        "at the epoch": Bad(event("away", 0), "late", key=b"away", partition=_home("away")),
        "null and odd headers": Bad(b"?", "not_json", headers=[("a", None), ("", b""), ("ünï", b"\xff"), ("a", b"2")]),
        "headers of our own names": Bad(b"?", "not_json", headers=[("reason", b"mine"), ("source_offset", b"-1")]),
        "half a megabyte of headers": Bad(b"?", "not_json", headers=[(f"h{i}", b"x" * 50_000) for i in range(10)]),
        "sent on already": Bad(
            event("astray", now_ms), "misrouted", "belongs to", headers=[("rerouted", b"0/1")], partition=astray
        ),
        "too large to send on": Bad(
            event("astray", now_ms, pad="p" * 3 * MB), "oversized", "too many", partition=astray, codec="zstd"
        ),
        "too large for a dead letter": Bad(b"{" + b"x" * 3 * MB, "not_json", codec="gzip"),
        "a key too large": Bad(b"?", "not_json", key=b"k" * 2 * MB, codec="lz4"),
    }


def _good(now_ms: int) -> dict[str, bytes]:
    """Events that must be counted, by id: at the edges of what is allowed."""
    plain = [event(f"good-{i}", now_ms - i, path=f"/p/{i % 7}", bytes=i) for i in range(2_000)]
    edges = {
        "early-edge": {"timestamp_ms": now_ms + 23 * HOUR_MS},
        "late-edge": {"timestamp_ms": now_ms - 71 * HOUR_MS},
        "i" * 128: {},
        "zeros": {"response_time_ms": 0, "bytes": 0, "status": 100},
        "limits": {"response_time_ms": 86_400_000, "bytes": 1 << 50, "status": 599},
        "paths-1": {"path": "/v1/docs:batchGet"},
        "paths-2": {"path": "a|||b"},
        "paths-3": {"path": "a"},
        "paths-4": {"path": "\x00"},
        "paths-5": {"path": "/ünï/✓"},
        "paths-6": {"path": "/" + "p" * 8_191},
        "v6": {"client_ip": "2001:db8::1"},
        "unknown-field": {"zone": {"deep": [1, 2]}},
        "large-unknown-field": {"pad": "p" * 2 * MB},
    }
    found = {json.loads(value)["event_id"]: value for value in plain}
    return found | {name: event(name, **{"timestamp_ms": now_ms, **fields}) for name, fields in edges.items()}


@dataclass
class Sent:
    """Where each record landed: (partition, offset) by name."""

    places: dict[str, tuple[int, int]] = field(default_factory=dict)

    def report(self, name: str) -> Any:
        def delivered(error: Any, message: Any) -> None:
            assert error is None, f"{name}: {error}"
            self.places[name] = (message.partition(), message.offset())

        return delivered


@dataclass(frozen=True)
class Dead:
    """A record of the dead-letter topic."""

    key: bytes | None
    value: bytes | None
    headers: Sequence[Header]

    @property
    def place(self) -> tuple[int, int]:
        """The coordinates it names."""
        named = dict(self.headers)
        return int(named["source_partition"] or b""), int(named["source_offset"] or b"")


@dataclass
class Outcome:
    """What was sent and what became of it."""

    run: Run
    bad: Mapping[str, Bad]
    good: Mapping[str, bytes]
    places: Mapping[str, tuple[int, int]]
    poison: tuple[tuple[int, int], bytes]
    refused: Mapping[str, int]
    dead: list[Dead]
    rows: Mapping[tuple[int, int], Mapping[str, Any]]
    objects: Any

    def letter(self, name: str) -> tuple[Dead, Mapping[str, Any]]:
        """The one dead letter of a record, and its row."""
        (dead,) = [dead for dead in self.dead if dead.place == self.places[name]]
        return dead, self.rows[self.places[name]]

    def object(self, key: str) -> bytes:
        """An object's bytes."""
        body: bytes = self.objects.get_object(Bucket=self.run.settings.s3_bucket, Key=key)["Body"].read()
        return body


@pytest.fixture(scope="module")
def outcome(stack: LocalStack, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Outcome]:
    with chaos_run(stack, tmp_path_factory.mktemp("bad")) as run:
        now_ms = int(time.time() * 1000)
        bad, good = _bad(now_ms), _good(now_ms)
        places = _produced(run, bad, good)
        poison, odd, refused = asyncio.run(_raw(run.source.bootstrap, now_ms))
        good |= odd
        run.worker()
        run.wait_drained()
        dead = _dead_letters(run.source.bootstrap)
        objects = boto3.client(
            "s3",
            endpoint_url=stack.s3.url,
            region_name="auto",
            aws_access_key_id=run.settings.s3_access_key,
            aws_secret_access_key=run.settings.s3_secret_key,
        )
        yield Outcome(run, bad, good, places, poison, refused, dead, _rows(run), objects)


def _produced(run: Run, bad: Mapping[str, Bad], good: Mapping[str, bytes]) -> dict[str, tuple[int, int]]:
    """Send everything that a real client can send, in mixed order; good events by every codec in turn."""
    sent = Sent()
    producers = {codec: _producer(run.source.bootstrap, codec) for codec in CODECS}
    mixed: list[Any] = [*bad.items(), *good.items()]
    random.Random(4).shuffle(mixed)
    for i, (name, what) in enumerate(mixed):
        if isinstance(what, Bad):
            partition = i % PARTITIONS if what.partition is None else what.partition
            at = {"partition": partition, "headers": list(what.headers)}
            producers[what.codec].produce(TRAFFIC_EVENTS, what.value, what.key, on_delivery=sent.report(name), **at)
        else:
            codec = CODECS[i % 5] if len(what) < MB else "zstd"
            headers = [("producer", f"by-{codec}".encode())]
            producers[codec].produce(
                TRAFFIC_EVENTS, what, name.encode(), headers=headers, on_delivery=sent.report(name)
            )
    for producer in producers.values():
        assert producer.flush(30) == 0
    return sent.places


def _producer(bootstrap: str, codec: str) -> Producer:
    return Producer(
        {
            "bootstrap.servers": bootstrap,
            "partitioner": "murmur2_random",
            "compression.type": codec,
            "message.max.bytes": 5 * MB,
            "linger.ms": 20,
            "log_level": 0,
        }
    )


POISONED = [Raw(b"k", event(f"lost-{i}", path="/lost")) for i in range(3)]


async def _raw(bootstrap: str, now_ms: int) -> tuple[tuple[tuple[int, int], bytes], dict[str, bytes], dict[str, int]]:
    """Batches that no client sends: poison the broker takes, odd headers on good events, and what it refuses."""
    client = AIOKafkaClient(bootstrap_servers=bootstrap)
    await client.bootstrap()
    await client.add_topic(TRAFFIC_EVENTS)

    async def send(partition: int, data: bytes) -> tuple[int, int]:
        node = client.cluster.leader_for_partition(TopicPartition(TRAFFIC_EVENTS, partition))
        topics = [(TRAFFIC_EVENTS, [(partition, data)])]
        request = ProduceRequest(transactional_id=None, required_acks=-1, timeout=5_000, topics=topics)
        ((_, ((_, code, offset, *_),)),) = (await client.send(node, request)).topics
        return code, offset

    try:
        refused = {name: (await send(0, data))[0] for name, data in _spoiled().items()}
        payload = _lz4_with_bad_checksum()
        code, offset = await send(1, sealed(payload, len(POISONED), ENCODERS["lz4"][0]))
        assert code == 0, "the broker takes a wrong content checksum"
        odd = {f"odd-{codec}": event(f"odd-{codec}", now_ms) for codec in CODECS}
        for codec, (name, value) in zip(CODECS, odd.items(), strict=True):
            headers = ((b"\xff\xfe", b"1"), ("null", None))
            code, _ = await send(_home(name), record_batch([Raw(name.encode(), value, headers)], codec=codec))
            assert code == 0
        return ((1, offset), payload), odd, refused
    finally:
        await client.close()


def _spoiled() -> dict[str, bytes]:
    """Batches with a right checksum around a payload that the broker itself cannot read."""
    batches = {"gzip spoiled": record_batch(POISONED, codec="gzip", spoil=True)}
    for codec in ("snappy", "lz4", "zstd"):  # without a checksum, other bytes in the middle may still be a text
        number, encode = ENCODERS[codec]
        batches[f"{codec} cut"] = sealed(bytes(encode(plain_records(POISONED)))[:-9], 3, number)
    batches["fewer records than it says"] = sealed(plain_records(POISONED), 4, 0)
    batches["no such codec"] = sealed(plain_records(POISONED), 3, 6)
    return batches


def _lz4_with_bad_checksum() -> bytes:
    compressor = cramjam.lz4.Compressor(level=1, content_checksum=True, block_linked=False)
    compressor.compress(plain_records(POISONED))
    payload = bytearray(bytes(compressor.finish()))
    payload[-1] ^= 0xFF
    return bytes(payload)


def _dead_letters(bootstrap: str) -> list[Dead]:
    """All committed records of the dead-letter topic."""
    settings = {"group.id": "reader", "enable.auto.commit": False, "enable.partition.eof": True, "log_level": 0}
    reader = Consumer({"bootstrap.servers": bootstrap, **settings})
    reader.assign([Place(TRAFFIC_DEADLETTER, partition, 0) for partition in range(PARTITIONS)])
    found, ended, deadline = [], 0, time.monotonic() + 20
    try:
        while ended < PARTITIONS:
            assert time.monotonic() < deadline, f"read {len(found)} dead letters, and {ended} partitions to their ends"
            for message in reader.consume(100, timeout=0.2):
                if message.error() is None:
                    found.append(Dead(message.key(), message.value(), message.headers() or []))
                elif message.error().code() == KafkaError._PARTITION_EOF:
                    ended += 1
        return found
    finally:
        reader.close()


def _rows(run: Run) -> dict[tuple[int, int], dict[str, Any]]:
    names = "source_partition, source_offset, source_topic, stream, reason, error, producer, size_bytes, object_key"
    rows = run.rows(f"SELECT {names} FROM deadletters")
    return {(int(row[0]), int(row[1])): dict(zip(names.split(", "), row, strict=True)) for row in rows}


# -- what became of it -------------------------------------------------------------------------------------------


def test_the_worker_lives(outcome: Outcome) -> None:
    (worker,) = outcome.run.workers
    assert worker.running
    assert worker.codes == []


def test_every_good_event_is_counted_whatever_stood_beside_it(outcome: Outcome) -> None:
    counted = Counter(event_id for (event_id,) in outcome.run.rows("SELECT event_id FROM traffic_events"))
    assert counted == dict.fromkeys(outcome.good, 1)
    ((requests,),) = outcome.run.rows("SELECT sum(requests) FROM path_stats_hourly")
    assert requests == len(outcome.good)


def test_batches_of_every_codec_are_read(outcome: Outcome) -> None:
    told = dict(outcome.run.rows("SELECT producer, count() FROM traffic_events GROUP BY producer"))
    assert {f"by-{codec}" for codec in CODECS} < set(told)


def test_every_bad_record_has_one_dead_letter(outcome: Outcome) -> None:
    wanted = {outcome.places[name] for name in outcome.bad} | {outcome.poison[0]}
    assert Counter(dead.place for dead in outcome.dead) == dict.fromkeys(wanted, 1)
    assert outcome.rows.keys() == wanted
    ((dead, late),) = outcome.run.rows("SELECT sum(dead), sum(late) FROM stream_progress")
    assert (dead, late) == (len(wanted), 2)


@pytest.mark.parametrize("name", _bad(0))
def test_a_dead_letter_says_why_and_where_and_holds_the_record(outcome: Outcome, name: str) -> None:
    bad, (dead, row) = outcome.bad[name], outcome.letter(name)
    said = dict(dead.headers[:6])
    assert (said["reason"] or b"").decode() == row["reason"] == bad.reason
    assert (said["error"] or b"").decode() == row["error"]
    assert re.search(re.escape(bad.error), row["error"]), row["error"]
    assert (said["source_topic"], said["attempts"]) == (TRAFFIC_EVENTS.encode(), b"1")
    assert (row["stream"], row["source_topic"]) == ("traffic", TRAFFIC_EVENTS)
    assert row["size_bytes"] == len(bad.value or b"")
    if row["object_key"]:
        assert dead.value is None
        assert dict(dead.headers)["object"] == row["object_key"].encode()
        assert outcome.object(row["object_key"]) == (bad.value or b"")
    else:
        assert (dead.key, dead.value) == (bad.key, bad.value)
        assert [(k.removeprefix("original_"), v) for k, v in dead.headers[6:]] == list(bad.headers)


def test_what_does_not_fit_goes_to_the_object_store(outcome: Outcome) -> None:
    stored = {name for name in outcome.bad if outcome.letter(name)[1]["object_key"]}
    assert stored == {"too large to send on", "too large for a dead letter", "a key too large"}


def test_a_batch_that_nobody_can_decompress_is_kept_whole(outcome: Outcome) -> None:
    place, payload = outcome.poison
    (dead,) = [dead for dead in outcome.dead if dead.place == place]
    assert (dead.value or b"").endswith(payload)
    said = dict(dead.headers)
    assert said["reason"] == b"unreadable"
    first = place[1]
    assert f"offsets {first} to {first + 2} cannot be decoded".encode() in (said["error"] or b"")


def test_the_broker_refuses_what_it_cannot_read_itself(outcome: Outcome) -> None:
    assert outcome.refused.keys() == _spoiled().keys()
    assert all(code != 0 for code in outcome.refused.values()), outcome.refused


def test_paths_of_any_kind_stay_apart(outcome: Outcome) -> None:
    paths = {path for (path,) in outcome.run.rows("SELECT DISTINCT path FROM path_stats_hourly")}
    assert {"/v1/docs:batchGet", "a|||b", "a", "\x00", "/ünï/✓", "/" + "p" * 8_191} < paths
