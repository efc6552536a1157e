"""Audio's figures: what a fold tells of itself, and what `sluiceway status` makes of it."""

from __future__ import annotations

from typing import Any

import pytest
from prometheus_client import CollectorRegistry, generate_latest

from compose.audio_status import gateway_figures, gateway_line, worker_figures, worker_lines
from streams.audio import outcomes
from streams.audio.figures import of_memory
from streams.audio.held import CHUNK_OVERHEAD, Budget, Shelf
from streams.audio.rows import missing
from streams.audio.session import Status
from streams.runtime.metrics import StreamMetrics
from streams.web.metrics import AudioMetrics, GatewayMetrics
from tests.audiofold import RULES, Close, World, chunk, opened
from topics.audio import REFUSE, encode
from topics.specs import AUDIO_CHUNKS


def a_day() -> World:
    """Of four sessions one is over, one goes on with gaps, one has nothing and one was refused."""
    world = World(capacity=3 * RULES.window_memory(opened()))
    for name in ("a", "b", "c"):
        world.say(opened(name))
    world.say(opened("d"), (REFUSE, b"1"))
    world.talk("a", 0, 89)
    world.say(Close("a"))
    for seq in (3, 4, 9):
        world.say(chunk("b", seq))
    spoiled = encode(chunk("b", 10))
    world.append(spoiled.key, spoiled.value, [*spoiled.headers, ("md5", b"0" * 32)])
    world.settle()
    return world


def test_figures_are_those_of_the_sessions() -> None:
    world = a_day()
    figures = world.fold.figures()
    shown = ("open", "closing", "remembered", "deferred")
    assert [figures[f"sessions_{name}"] for name in shown] == [2, 0, 4, 0]
    live = [session for session in world.fold.state.sessions.values() if session.status is Status.OPEN]
    assert figures["gaps"] == sum(map(missing, live)) == 3 + 4
    assert (figures["sessions_ended"], figures["session_ms"]) == (1, 90_000)
    assert (figures["outcome_refused"], figures["integrity_failures"]) == (1, 1)
    assert figures["upload_success"] == 1.0
    assert figures["recording_bytes"] == 90 * 16_000
    world.start()
    world.read()
    assert world.fold.figures() == figures, "a restore tells the same"


def test_what_could_not_be_stored_lowers_the_success() -> None:
    world = a_day()
    world.fails = True
    world.talk("b", 20, 89)
    world.say(Close("b"))
    world.settle()
    figures = world.fold.figures()
    failed = figures["outcome_failed"]
    stored = figures["outcome_stored"] + figures["outcome_recorded"]
    assert failed >= 2
    assert figures["upload_success"] == stored / (stored + failed)


@pytest.mark.parametrize("kind", ["stored", "recorded", "failed", "unrecorded"])
def test_an_object_that_was_not_what_was_written_is_one_integrity_failure(kind: str) -> None:
    world = World()
    world.say(opened())
    world.say(chunk("s", 0))
    world.say(Close("s"))
    world.read()
    world.flush()
    made = {
        "stored": outcomes.Stored(0, 0, 16_000, "0" * 32, 3, damaged=True),
        "failed": outcomes.Failed(0, 0, 3, "other bytes", damaged=True),
        "recorded": outcomes.Recorded("audio/s/recording.flac", 1, "0" * 32, 1_000, damaged=True),
        "unrecorded": outcomes.Unrecorded("other bytes", damaged=True),
    }
    if "recorded" in kind:
        report(world, outcomes.Stored(0, 0, 16_000, "0" * 32, 1))
    for _ in range(2):  # told twice, it counts once
        report(world, made[kind])
    assert world.fold.figures()["integrity_failures"] == 1


def report(world: World, outcome: outcomes.Outcome) -> None:
    """What came of an effect is folded."""
    emit = outcomes.encode(outcome, "s", AUDIO_CHUNKS, 0)
    world.append(emit.key, emit.value, emit.headers)
    world.read()
    world.flush()


def test_memory_is_high_above_four_fifths_held_or_promised_by_all_partitions() -> None:
    budget = Budget(1_000)
    first, second = Shelf(budget), Shelf(budget)

    def high() -> tuple[float, float]:
        told = [of_memory(shelf, budget) for shelf in (first, second)]
        assert told[0]["worker_memory_share"] == told[1]["worker_memory_share"]
        return told[0]["worker_memory_share"], told[0]["worker_memory_high"]

    assert high() == (0, 0)
    first.admit("a", 400)
    second.admit("b", 400)
    assert high() == (0.8, 0), "80 % is not above it"
    second.admit("c", 1)
    assert high() == (0.801, 1), "the next sessions will be refused"
    for name, shelf in (("c", second), ("b", second)):
        shelf.release(name)
    assert high() == (0.4, 0)
    first.put("a", 0, bytes(900 - CHUNK_OVERHEAD))
    assert high() == (0.9, 1), "held beyond the windows, as the store takes nothing"


def status_of(world: World, pid: int, **other: float) -> dict[str, Any]:
    """A worker's answer at /status."""
    figures = {**world.fold.figures(), **other}
    return {"stream": "audio", "pid": pid, "partitions": [{"figures": {}}, {"figures": figures}]}


def test_status_sums_partitions_and_tells_each_workers_memory() -> None:
    high = {"worker_memory_high": 1.0, "worker_memory_share": 0.91}
    workers = [status_of(a_day(), 11), status_of(a_day(), 12, **high), {"stream": "traffic", "partitions": []}]
    metrics = StreamMetrics("audio", CollectorRegistry())
    for seconds in (0.003, 0.004, 0.06):
        metrics.partition(0).folded(10, 0.001, seconds)
    audio = worker_figures(workers, [generate_latest(metrics.registry).decode()] * 2)
    assert audio is not None
    assert audio["handling_p50_s"] < 0.005 and 0.05 < audio["handling_p99_s"] <= 0.1
    audio |= {"handling_p50_s": 0.004, "handling_p99_s": 0.06}
    assert (audio["sessions_live"], audio["sessions_refused"], audio["session_mean_s"]) == (4, 2, 90)
    assert (audio["segments_stored"], audio["recordings_made"], audio["upload_success"]) == (4, 2, 1.0)
    assert [(memory["pid"], memory["high"]) for memory in audio["memory"]] == [(11, False), (12, True)]
    assert worker_lines(audio) == [
        "audio: sessions 4 live, 1 min 30 s long on average, 2 refused",
        "audio: 4 segments and 2 recordings stored, 0 failed (100 % success, within the limit of 99.9%), "
        "[bold]2 integrity failures[/bold]",
        "audio: from a fetch to folded 4 ms (p50), 60 ms (p99, [bold]above the limit of 50 ms[/bold])",
        "audio: worker 11 holds 0.0 MB and has promised 4.2 MB of 6.3 MB (67%, within the limit of 80%)",
        "audio: worker 12 holds 0.0 MB and has promised 4.2 MB of 6.3 MB (91%, [bold]above the limit of 80%[/bold])",
    ]
    audio |= {"upload_success": 0.99899999, "segments_failed": 7, "integrity_failures": 0}
    below = "7 failed (99.899 % success, [bold]below the limit of 99.9%[/bold]), no integrity failure"
    assert worker_lines(audio)[1].endswith(below)
    assert worker_figures([{"stream": "traffic", "partitions": []}]) is None


def test_status_reads_the_gateways_times_from_its_metrics() -> None:
    registry = CollectorRegistry()
    metrics, audio = GatewayMetrics(registry), AudioMetrics(registry)
    audio.sockets_limit.set(2_000)
    nothing = gateway_figures(generate_latest(registry).decode())
    assert nothing["response_p99_s"] is None
    assert gateway_line(nothing) == "gateway: 0 of 2,000 audio connections"
    for _ in range(100):
        metrics.request_seconds.labels("/api/audio/{session_id}").observe(0.004)
        metrics.request_seconds.labels("/api/events").observe(3.0)
    metrics.request_seconds.labels("/api/audio/{session_id}/window").observe(0.2)
    metrics.request_seconds.labels("/api/audio/{session_id}/window").observe(0.2)
    found = gateway_figures(generate_latest(registry).decode())
    assert found["response_p50_s"] < 0.005 and 0.1 < found["response_p99_s"] < 0.25
    assert "questions answered in 3 ms (p50), " in gateway_line(found)
    assert gateway_line(found).endswith(" ms (p99, [bold]above the limit of 100 ms[/bold])")
