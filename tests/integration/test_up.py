"""`sluiceway up` brings everything to its feet, keeps it there, and leaves nothing behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import clickhouse_connect
import psutil
import pytest

from compose.local.process import free_port
from compose.local.stack import LocalStack
from compose.settings import Settings
from compose.stream_processes import STREAMS
from streams.audio.containers.wav import wav_of
from tests.audio import sound
from tests.pipes import first_line

pytestmark = pytest.mark.stack

READY_S = 180.0
STOP_S = 15.0


def _settings(folder: Path) -> Settings:
    return Settings(
        data_dir=folder,
        kafka_bootstrap=f"127.0.0.1:{free_port()}",
        clickhouse_url=f"http://127.0.0.1:{free_port()}",
        s3_endpoint=f"http://127.0.0.1:{free_port()}",
        gateway_port=free_port(),
    )


@contextmanager
def _up(settings: Settings, log: Path) -> Iterator[subprocess.Popen[bytes]]:
    command = [sys.executable, "-m", "compose.cli", "up"]
    with log.open("ab") as errors:
        process = subprocess.Popen(command, env=_environ(settings), stdout=subprocess.PIPE, stderr=errors)
    try:
        yield process
    finally:
        process.kill()
        process.wait(STOP_S)


def _environ(settings: Settings) -> dict[str, str]:
    return {**os.environ, **settings.environ()}


def _until(true: Callable[[], bool], deadline_s: float, what: str) -> None:
    deadline = time.monotonic() + deadline_s
    while not true():
        assert time.monotonic() < deadline, f"{what}: not within {deadline_s} s"
        time.sleep(0.1)


def _ready(process: subprocess.Popen[bytes], log: Path) -> None:
    assert first_line(process.stdout, READY_S) == b"ready\n", log.read_text()[-3000:]


def _named(process: subprocess.Popen[bytes], words: str) -> psutil.Process:
    """The one process below `up` whose command line has these words."""
    below = psutil.Process(process.pid).children(recursive=True)
    found = [p for p in below if not _gone(p) and words in " ".join(p.cmdline())]
    assert len(found) == 1, [p.cmdline() for p in found]
    return found[0]


def _gone(process: psutil.Process) -> bool:
    """Whether it has ended; one that nobody has waited for yet has, too."""
    try:
        return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def _send(settings: Settings, event_id: str, path: str) -> None:
    event = {"event_id": event_id, "timestamp_ms": int(time.time() * 1000), "method": "GET", "path": path}
    event |= {"status": 200, "client_ip": "192.0.2.1"}
    url = f"http://127.0.0.1:{settings.gateway_port}/api/events"
    headers = {"Content-Type": "application/json"}
    request = urllib.request.Request(url, json.dumps([event]).encode(), headers)
    with urllib.request.urlopen(request, timeout=20) as answer:
        assert json.load(answer)["accepted"] == 1


def _counted(settings: Settings, path: str) -> int:
    with clickhouse_connect.get_client(dsn=settings.clickhouse_url, database="sluiceway") as client:
        rows = client.query(
            "SELECT sum(requests) FROM path_stats_hourly WHERE path = {p:String}", parameters={"p": path}
        )
        return int(rows.result_rows[0][0])


def _record(settings: Settings, file: Path) -> None:
    """A session whose recording is what was sent, as the command itself finds."""
    file.write_bytes(wav_of(16_000, 1, sound(3.0, 16_000, 1)))
    command = [sys.executable, "-m", "compose.cli", "send-audio", "--give-up", "60", "--json", str(file)]
    done = subprocess.run(command, env=_environ(settings), capture_output=True, text=True, timeout=90)
    assert done.returncode == 0 and json.loads(done.stdout)["ok"], done.stdout + done.stderr


def _streams_shown(settings: Settings) -> set[str]:
    """The partitions that `sluiceway status` shows, with nothing wrong."""
    command = [sys.executable, "-m", "compose.cli", "status"]
    done = subprocess.run(command, env=_environ(settings), capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
    return {line.split()[0] for line in done.stdout.splitlines() if " ready " in line}


@pytest.mark.slow
def test_up_serves_survives_crashes_and_stops_cleanly(tmp_path: Path) -> None:
    settings, log = _settings(tmp_path / "data"), tmp_path / "up.log"
    with _up(settings, log) as process:
        _ready(process, log)
        _send(settings, "one", "/up")
        _until(lambda: _counted(settings, "/up") == 1, 15, "the first event in ClickHouse")
        for words in ("gateway", "--child --streams traffic", "--child --streams audio", "rclone"):
            gone = _named(process, words)
            gone.kill()
            _until(lambda: _gone(gone), 5, "its end")  # noqa: B023 - used within the turn
        _until(lambda: _is_served(settings), 30, "the gateway again")
        _send(settings, "two", "/up")
        _until(lambda: _counted(settings, "/up") == 2, 30, "the event after the crashes in ClickHouse")
        _record(settings, tmp_path / "tone.wav")
        assert _streams_shown(settings) == {f"{stream}/{part}" for stream in STREAMS for part in range(4)}
        family = psutil.Process(process.pid).children(recursive=True)
        assert len(family) >= 6
        begun = time.monotonic()
        process.send_signal(signal.SIGINT)
        assert process.wait(STOP_S) == 0, log.read_text()[-3000:]
        assert time.monotonic() - begun < STOP_S
        assert all(_gone(p) for p in family)
    with _up(settings, log) as process:
        _ready(process, log)
        assert _counted(settings, "/up") == 2
        _send(settings, "two", "/up")
        _send(settings, "three", "/up")
        _until(lambda: _counted(settings, "/up") == 3, 15, "the third event alone, for the second was known")
        family = psutil.Process(process.pid).children(recursive=True)
        process.kill()
        _until(lambda: all(_gone(p) for p in family), 30, "the end of all that a killed `up` started")


def _is_served(settings: Settings) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{settings.gateway_port}/api/ready", timeout=2) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


def test_up_stops_while_it_starts(tmp_path: Path) -> None:
    settings, log = _settings(tmp_path / "data"), tmp_path / "up.log"
    with _up(settings, log) as process:
        _until(lambda: len(psutil.Process(process.pid).children(recursive=True)) >= 2, READY_S, "some children")
        family = psutil.Process(process.pid).children(recursive=True)
        process.send_signal(signal.SIGTERM)
        assert process.wait(STOP_S) == 0, log.read_text()[-3000:]
        assert all(_gone(p) for p in family)


def test_up_says_what_is_in_its_way(stack: LocalStack) -> None:
    command = [sys.executable, "-m", "compose.cli", "up"]
    environ = _environ(_settings(stack.data_dir))
    second = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=READY_S)
    assert second.returncode == 1
    assert second.stderr.startswith(f"sluiceway: The data folder {stack.data_dir} is held by a running stack")
    assert f"process {os.getpid()}" in second.stderr
