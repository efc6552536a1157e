"""`sluiceway dlq` on the real stack: letters are told, shown, sent back once, told apart when they come again, and purged."""

from __future__ import annotations

import asyncio
import json
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import boto3
import pytest
from aiokafka.errors import ProducerFenced
from confluent_kafka import Producer
from typer.testing import CliRunner

from compose.cli import app
from compose.dlq import Dlq, Wanted
from compose.local.stack import LocalStack
from compose.settings import Settings
from streams.runtime.replays import Outgoing, Replayer
from tests.audiostack import audio_run, new_session, noise
from tests.chaos.driver import chaos_run
from tests.traffic import HOUR_MS, event
from topics import specs
from topics.audio import Chunk, Close
from topics.audio_events import session_prefix
from topics.deadletters import parse_id

pytestmark = pytest.mark.stack

BIG = b"{" * 3_000_000


class Command:
    """`sluiceway dlq`, with the settings of a test."""

    def __init__(self, settings: Settings) -> None:
        self._env = settings.environ()

    def __call__(self, *arguments: str, code: int = 0) -> str:
        """What it prints."""
        done = CliRunner().invoke(app, ["dlq", *arguments], env=self._env)
        assert done.exit_code == code, (arguments, done.output, done.exception)
        return str(done.output)

    def json(self, *arguments: str) -> list[dict[str, Any]]:
        """The objects it prints."""
        return [json.loads(line) for line in self(*arguments, "--json").splitlines()]

    def letters(self, *filters: str) -> list[dict[str, Any]]:
        """The letters it lists."""
        return [one for one in self.json("list", "--limit", "1000", *filters) if one["kind"] == "letter"]

    def raw(self, id: str) -> bytes:
        """A letter's bytes."""
        done = CliRunner().invoke(app, ["dlq", "show", id, "--raw"], env=self._env)
        assert done.exit_code == 0
        return done.stdout_bytes


def _attempts(letters: list[dict[str, Any]]) -> Counter[tuple[str, int]]:
    return Counter((one["reason"], one["attempts"]) for one in letters)


async def _replay(settings: Settings, wanted: Wanted, between: Callable[[], Any]) -> None:
    """A replay that another one gets ahead of before it has sent anything."""
    work = Dlq(settings)
    plan = await work.plan(wanted, None, again=True)
    letter = await work.find(plan.take[0])
    async with Replayer(work._clients) as first:
        await between()
        await first.send([Outgoing(letter, letter.value)])


def test_letters_of_traffic_are_replayed_once_and_counted_on(stack: LocalStack, tmp_path: Path) -> None:
    with chaos_run(stack, tmp_path) as run:
        dlq = Command(run.settings)
        assert "no dead letters" in dlq("list")
        first = run.worker(traffic_early_h=1)
        now_ms = int(time.time() * 1000)
        producer = Producer(
            {
                "bootstrap.servers": stack.kafka.bootstrap,
                "partitioner": "murmur2_random",
                "compression.type": "gzip",
                "message.max.bytes": 5_000_000,
            }
        )
        headers = [("producer", b"edge"), ("attempts", b"mine"), ("original_reason", b"too"), ("empty", None)]
        sent = {
            "malformed": b"no event",
            "early": event("early", now_ms + 3 * HOUR_MS),
            "late": event("late", now_ms - 80 * HOUR_MS),
            "big": BIG,
        }
        for key, value in sent.items():
            producer.produce(specs.TRAFFIC_EVENTS, value, key, headers=headers if key != "big" else None)
        assert producer.flush(20) == 0
        run.until(lambda: run.rows("SELECT count() FROM deadletters") == [(4,)], "four dead letters")
        run.until(lambda: len(dlq.letters()) == 4, "all are committed")

        by_reason = {one["reason"]: one for one in dlq.letters("--producer", "edge")}
        assert by_reason.keys() == {"not_json", "early", "late"}
        (big,) = dlq.letters("--producer", "")
        counts = [one for one in dlq.json("list") if one["kind"] == "count"]
        assert {(one["reason"], one["producer"], one["letters"]) for one in counts} == {
            ("not_json", "edge", 1),
            ("early", "edge", 1),
            ("late", "edge", 1),
            ("not_json", "", 1),
        }
        assert dlq.letters("--reason", "early", "--since", "1h") == [by_reason["early"]]
        assert dlq.letters("--since", "2099-01-01") == dlq.letters("--stream", "audio") == []
        assert dlq.raw(big["id"]) == BIG
        assert dlq.raw(by_reason["early"]["id"]) == sent["early"]
        shown = dlq("show", by_reason["late"]["id"])
        assert "80.0 h behind" in shown and '"event_id": "late"' in shown and "header    attempts: mine" in shown

        # What it is to take now, it took for too early then.
        assert "would replay 4 dead letters" in dlq("replay")
        assert sum(run.source.ends()) == 4, "a dry run sends nothing"
        assert first.drain()[0] == 0
        second = run.worker(traffic_early_h=24)
        run.until(lambda: second.owns() == {0, 1, 2, 3}, "a worker with other rules")
        assert "replayed 4 dead letters" in dlq("replay", "--yes")
        run.until(lambda: len(dlq.letters()) == 7, "three die again")
        assert _attempts(dlq.letters()) == {
            ("not_json", 1): 2,
            ("not_json", 2): 2,
            ("early", 1): 1,
            ("late", 1): 1,
            ("late", 2): 1,
        }
        run.until(lambda: run.rows("SELECT event_id FROM traffic_events") == [("early",)], "one is accepted")
        again = {one["replay_of"]: one for one in dlq.letters() if one["attempts"] == 2}
        late = again[by_reason["late"]["id"]]
        assert late["state"] == "dead" and "80.0 h behind" in late["error"]
        (old,) = [one for one in dlq.letters() if one["id"] == by_reason["late"]["id"]]
        assert (old["state"], old["replays"]) == (f"died again as {late['id']}", 1)
        assert dlq.raw(again[big["id"]]["id"]) == BIG
        assert "header    original_reason: too" in dlq("show", late["id"])
        assert "replay:" not in dlq("show", late["id"])

        # Those that were replayed are left out; those that died again count on.
        told = dlq("replay", "--stream", "traffic", "--yes")
        assert "replayed 3 dead letters" in told and "4 replayed before" in told
        run.until(lambda: len(dlq.letters()) == 10, "they die a third time")
        assert _attempts(dlq.letters("--reason", "late")) == {("late", 1): 1, ("late", 2): 1, ("late", 3): 1}
        # One that is replayed again is told from its first replay, and counts once.
        early = by_reason["early"]["id"]
        assert "1 replayed before" in dlq("replay", early)
        assert "replayed 1 dead letter" in dlq("replay", early, "--again", "--yes")
        run.until(run.drained, "read to the end")
        run.until(lambda: second.status()["partitions"] and _duplicates(second.status()) == 1, "it is a duplicate")
        assert run.rows("SELECT count() FROM traffic_events") == [(1,)]
        ((letter),) = [one for one in dlq.letters() if one["id"] == early]
        assert (letter["replays"], letter["state"][:8]) == (2, "replayed")

        # A replay that another one has begun after sends nothing more.
        async def another() -> None:
            async with Replayer(Dlq(run.settings)._clients):
                pass

        before = run.source.ends()
        with pytest.raises(ProducerFenced):
            asyncio.run(_replay(run.settings, Wanted("traffic", "early"), another))
        assert all(b - a <= 2 for a, b in zip(before, run.source.ends(), strict=True))
        assert [one["replays"] for one in dlq.letters("--reason", "early")] == [2]

        _check_purge(run.settings, dlq, big)


def _duplicates(status: dict[str, Any]) -> int:
    return int(sum(part["figures"].get("outcome_duplicate", 0) for part in status["partitions"]))


def _check_purge(settings: Settings, dlq: Command, big: dict[str, Any]) -> None:
    store = boto3.client(
        "s3",
        endpoint_url=settings.s3_endpoint,
        aws_access_key_id=settings.s3_access_key,
        aws_secret_access_key=settings.s3_secret_key,
        region_name="us-east-1",
    )

    def objects() -> int:
        found = store.list_objects_v2(Bucket=settings.s3_bucket, Prefix=f"deadletters/{specs.TRAFFIC_EVENTS}/")
        return len(found.get("Contents", ()))

    there, kept = len(dlq.letters()), objects()
    place = parse_id(big["id"])
    assert place is not None
    gone = [one for one in dlq.letters() if (at := parse_id(one["id"])) and at[:2] == place[:2] and at[2] <= place[2]]
    assert f"would purge {len(gone)} dead letter" in dlq("purge", big["id"])
    assert len(dlq.letters()) == there
    assert f"purged {len(gone)} dead letter" in dlq("purge", big["id"], "--yes")
    assert len(dlq.letters()) == there - len(gone)
    assert objects() == kept - 1, "its bytes go with it"
    assert f"there is no dead letter {big['id']}" in dlq("show", big["id"], code=1)
    dlq("purge", code=2)
    assert dlq.json("purge", "--older-than", "1d", "--yes")[0]["purged"] == 0
    assert dlq.json("purge", "--older-than", "0s", "--yes")[0]["purged"] == there - len(gone)
    assert (dlq.letters(), objects()) == ([], kept - 3)


def test_what_is_no_record_is_not_replayed(stack: LocalStack, tmp_path: Path) -> None:
    with chaos_run(stack, tmp_path) as run:
        worker = run.worker()
        run.until(lambda: worker.owns() == {0, 1, 2, 3}, "the worker owns all")
        dlq = Command(run.settings)
        own = {"source_topic": specs.TRAFFIC_EVENTS, "source_partition": "1", "source_offset": "9", "attempts": "1"}
        letters = {
            "a batch": ({**own, "reason": "unreadable"}, "no client can decode"),
            "cut": ({**own, "reason": "oversized", "key_bytes_left_out": "2000"}, "2000 bytes of its key are missing"),
            "another's": ({**own, "reason": "oversized", "object": "audio/s/recording.flac"}, "no dead letter's bytes"),
            "no object": ({**own, "reason": "oversized", "object": "deadletters/none"}, "has no deadletters/none"),
            "foreign": ({}, "does not say of which record"),
            "elsewhere": ({**own, "source_topic": "sluiceway-traffic-changelog"}, "does not say of which record"),
            "no such partition": ({**own, "reason": "late", "source_partition": "77"}, "has no partition 77"),
        }
        producer = Producer({"bootstrap.servers": stack.kafka.bootstrap})
        for key, (headers, _) in letters.items():
            producer.produce(specs.TRAFFIC_DEADLETTER, b"x", key, headers=[(k, v.encode()) for k, v in headers.items()])
        assert producer.flush(20) == 0
        ends = run.source.ends()
        told = json.loads(dlq("replay", "--yes", "--json", code=1))
        assert told["replayed"] == 0
        assert len(told["refused"]) == len(letters)
        for _, why in letters.values():
            assert any(why in text for text in told["refused"].values()), (why, told)
        assert run.source.ends() == ends


def test_a_failed_segment_is_replayed_and_the_recording_is_whole(stack: LocalStack, tmp_path: Path) -> None:
    quick = {"audio_attempts": 1, "audio_attempt_s": 1.0, "audio_silence_s": 5.0, "audio_session_idle_s": 60.0}
    with audio_run(stack, tmp_path, **quick) as run:
        dlq = Command(run.settings)
        session = new_session(7)
        run.talker.say(session.opened)
        stack.s3.kill()
        for seq in range(40):
            session.chunks[seq] = noise(7, seq, session.opened)
            run.talker.say(Chunk(session.id, seq, 0, None, session.chunks[seq]))
        run.talker.flush()
        run.until(lambda: len(dlq.letters("--stream", "audio")) >= 1, "a segment failed")
        # While the store is still away, it fails again and counts on.
        assert "replayed" in dlq("replay", "--stream", "audio", "--limit", "1", "--yes")
        run.until(lambda: any(one["attempts"] == 2 for one in dlq.letters()), "it failed again")
        stack.s3.start()
        for seq in range(40, 50):
            session.chunks[seq] = noise(7, seq, session.opened)
            run.talker.say(Chunk(session.id, seq, 0, None, session.chunks[seq]))
        run.talker.say(Close(session.id))
        run.talker.flush()
        run.until(lambda: run.state(session).get("status") == "closed", "the session is closed")
        assert {one["reason"] for one in dlq.letters()} <= {"segment_failed"}
        dlq("replay", "--stream", "audio", "--reason", "segment_failed", "--yes")
        run.until(
            lambda: not run.objects(f"{session_prefix(session.id)}segments/"), "the segments are in the recording"
        )
        run.assert_recorded(session, [])
        # Safe to repeat: what is stored is not asked for again.
        ids = len(dlq.letters())
        dlq("replay", "--reason", "segment_failed", "--again", "--yes")
        run.until(lambda: run.state(session).get("status") == "closed", "nothing changes")
        run.assert_recorded(session, [])
        assert len(dlq.letters()) == ids
