"""Log files: the same lines and the same ids each time they are read, whatever they are wrapped in."""

from __future__ import annotations

import gzip
import os
import threading
from itertools import pairwise
from pathlib import Path

import pytest

from compose.local.generate import Shape, generate_events, generate_log
from compose.logfile import LINE_BYTES_MAX, LogFile, Occurrences, survey
from streams.traffic.accessline import AccessLine
from streams.traffic.accesslog import event_id, parse_line
from topics.traffic import TrafficEvent, decode

SHAPE = Shape(end_ms=1_431_857_103_000, duplicates=0.1, malformed=0.02, disorder_ms=5_000)


def ids_of(log: LogFile) -> list[str]:
    found = survey(log.lines(lambda _: None), parse_line)
    occurrences = Occurrences(found.repeated)
    return [event_id(line, occurrences.number(line)) for line in log.lines(lambda _: None)]


def test_every_line_has_an_id_of_its_own_and_keeps_it(tmp_path: Path) -> None:
    lines = list(generate_log(1, 20_000, SHAPE))
    assert len(set(lines)) < len(lines)
    plain, zipped = tmp_path / "a.log", tmp_path / "b"
    plain.write_bytes(b"\n".join(lines) + b"\n")
    zipped.write_bytes(gzip.compress(b"\r\n".join(lines[:7_000]) + b"\r\n") + gzip.compress(b"\n".join(lines[7_000:])))
    ids = ids_of(LogFile(str(plain)))
    assert len(set(ids)) == len(lines)
    assert ids == ids_of(LogFile(str(plain))) == ids_of(LogFile(str(zipped)))
    # A log that has grown gives its old lines their old ids.
    plain.write_bytes(b"\n".join(lines * 2))
    assert ids_of(LogFile(str(plain)))[: len(ids)] == ids


def test_a_survey_finds_count_and_newest_time(tmp_path: Path) -> None:
    lines = list(generate_log(2, 3_000, SHAPE))
    path = tmp_path / "a.log"
    path.write_bytes(b"\n".join(lines))
    found = survey(LogFile(str(path)).lines(lambda _: None), parse_line)
    times = [p.timestamp_ms for p in map(parse_line, lines) if isinstance(p, AccessLine)]
    assert (found.lines, found.newest_ms) == (3_000, max(times))
    assert survey(iter([]), parse_line).newest_ms is None


def test_a_pipe_is_read_twice(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    writer = threading.Thread(target=pipe.write_bytes, args=(b"a\nb\na\n",), daemon=True)
    writer.start()
    log = LogFile(str(pipe))
    writer.join(10)
    assert not writer.is_alive()
    assert list(log.lines(lambda _: None)) == list(log.lines(lambda _: None)) == [b"a", b"b", b"a"]


def test_cut_off_gzip_gives_what_is_there_and_tells(tmp_path: Path) -> None:
    lines = list(generate_log(3, 5_000, SHAPE))
    path = tmp_path / "a.gz"
    path.write_bytes(gzip.compress(b"\n".join(lines))[:-20_000])
    log = LogFile(str(path))
    read = list(log.lines(lambda _: None))
    assert 0 < len(read) < len(lines)
    assert read[:-1] == lines[: len(read) - 1]
    assert log.damage


def test_an_overlong_line_is_one_line_and_hides_no_other(tmp_path: Path) -> None:
    path = tmp_path / "a.log"
    good = b'1.1.1.1 - - [17/May/2015:10:05:03 +0000] "GET / HTTP/1.1" 200 1'
    path.write_bytes(
        b"x" * LINE_BYTES_MAX * 3 + good + b"\n" + good + b"\n" + b"y" * (LINE_BYTES_MAX - 1) + b"\n" + good
    )
    read = list(LogFile(str(path)).lines(lambda _: None))
    assert [len(line) for line in read] == [LINE_BYTES_MAX, len(good), LINE_BYTES_MAX - 1, len(good)]


def test_progress_rises_to_the_size(tmp_path: Path) -> None:
    path = tmp_path / "a.log"
    path.write_bytes(b"\n".join(generate_log(4, 50_000, SHAPE)))
    seen: list[int] = []
    log = LogFile(str(path))
    list(log.lines(seen.append))
    assert seen[-1] == log.size_bytes
    assert all(a <= b for a, b in pairwise(seen))


@pytest.mark.parametrize("seed", [1, 2])
def test_generated_traffic_is_the_same_for_a_seed_and_of_the_shape_asked_for(seed: int) -> None:
    records = list(generate_events(seed, 50_000, SHAPE))
    assert records == list(generate_events(seed, 50_000, SHAPE))
    events = [decode(value) for _, value in records]
    valid = [e for e in events if isinstance(e, TrafficEvent)]
    assert 0.01 < 1 - len(valid) / len(events) < 0.03
    assert 0.08 < 1 - len({key for key, _ in records}) / len(records) < 0.12
    assert all(e.event_id.encode() == key for e, (key, _) in zip(events, records, strict=True) if e in valid[:100])
    times = [e.timestamp_ms for e in valid]
    assert SHAPE.end_ms - SHAPE.span_ms - SHAPE.disorder_ms <= min(times) <= max(times) <= SHAPE.end_ms
    assert times != sorted(times)
    assert len({e.path for e in valid}) == SHAPE.paths
    assert 200 < sum(len(v) for _, v in records) / len(records) < 240
