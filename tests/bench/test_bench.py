"""The bench itself, on few events: every system gives a line, and the full job counts rightly."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest

pytestmark = pytest.mark.slow

RUN = [sys.executable, "-m", "compose.cli", "bench"]


def lines_of(*arguments: str) -> list[dict[str, Any]]:
    """The JSON lines of one run. It fails the test if anything but JSON is on standard output."""
    done = subprocess.run([*RUN, *arguments, "--json"], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_the_full_job_and_systems_beside_it_give_a_line_each() -> None:
    lines = lines_of("traffic", "--quick", "--duplicates", "0.2", "--systems", "sluiceway,bare-dedup,faust")
    found = {line["system"]: line for line in lines}
    own, bare, faust = found["sluiceway"], found["bare loop"], found["Faust 0.15.3"]
    assert own["events"] == 100_000
    assert 79_000 < own["ids"] < 85_000, "events that repeat others are read, and held once"
    assert 0 < own["cpu_s"] <= own["seconds"]
    assert own["events_per_s"] > faust["events_per_s"] > 0
    assert bare["cpu_us_per_event"] > 0
    assert [line["events_per_s"] for line in found.values() if line.get("quoted")] == [57_000, 61_000]


def test_every_marker_of_a_latency_run_is_seen() -> None:
    (found,) = lines_of("latency", "--rate", "500", "--seconds", "6")
    assert found["markers"] >= 10
    assert 0 < found["p50_s"] <= found["p99_s"] <= found["max_s"]


def test_live_audio_loses_nothing_and_is_recorded_bit_for_bit() -> None:
    (found,) = lines_of("audio", "--sessions", "16", "--seconds", "4")
    assert (found["frames_lost"], found["unclosed"], found["recordings_wrong"], found["troubles"]) == (0, 0, [], [])
    assert found["frames"] > 16 * 7.8 * 4
    assert found["segments_stored"] == 16
    assert 0 < found["durable_p50_s"] <= found["durable_p99_s"] <= found["durable_max_s"]
    assert 0 < found["handling_p50_s"] <= found["handling_p99_s"] < 5
    assert found["gateway_us_per_frame"] > 0 and found["cores"]["worker"] > 0


def test_ai_tasks_are_answered_and_every_measurement_gives_a_line() -> None:
    tokens, own, *submits = lines_of("ai", "--quick", "--without", "batches,celery")
    assert 0 < tokens["p50_s"] <= tokens["p99_s"] <= tokens["max_s"]
    assert tokens["tokens"] > tokens["blocks"] >= tokens["tasks"]
    assert own["events"] == 100 and own["events_per_s"] > 0
    assert 0 < own["cores"]["worker"] < 2
    assert [found["keyed"] for found in submits] == [False, True]
    for found in submits:
        assert found["submits"] == 50 and 0 < found["p50_s"] <= found["p99_s"] <= found["max_s"]


def test_a_file_goes_up_past_the_gateway_or_through_it() -> None:
    (found,) = lines_of("files", "--sizes", "70", "--users", "3", "--user-mb", "2")
    assert [(case["size_bytes"], case["users"]) for case in found["cases"]] == [(70e6, 1), (2e6, 3)]
    for case in found["cases"]:
        direct, relay = case["ways"]["direct"], case["ways"]["relay"]
        assert relay["through_gateway_bytes"] == case["size_bytes"] * case["users"]
        assert direct["through_gateway_bytes"] < 2_000 * case["users"]
        assert 0 < direct["seconds_min"] <= direct["seconds"] <= direct["seconds_max"]
    large = found["cases"][0]["ways"]
    assert large["direct"]["gateway_cpu_s"] < large["relay"]["gateway_cpu_s"]
    claimed = [claim["goal"] for claim in found["claims"]]
    assert len(claimed) == 2 * 4 + 1 and len(set(claimed)) == len(claimed)


def test_files_that_the_disk_has_no_room_for_are_refused_at_once() -> None:
    done = subprocess.run(
        [*RUN, "files", "--sizes", "2048", "--users", "1000000"], capture_output=True, text=True, timeout=30
    )
    assert done.returncode == 1 and "MB free" in done.stderr and "Traceback" not in done.stderr
    done = subprocess.run([*RUN, "files", "--sizes", "10,big"], capture_output=True, text=True, timeout=30)
    assert done.returncode == 2 and "--sizes" in done.stderr


def test_an_unknown_system_is_refused_by_name() -> None:
    done = subprocess.run([*RUN, "traffic", "--systems", "sparks"], capture_output=True, text=True, timeout=30)
    assert done.returncode == 2
    assert "sparks" in done.stderr and "bytewax" in done.stderr
