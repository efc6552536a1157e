"""File jobs under faults: workers die at each stage, freeze and come and go, converters too, S3 goes away, URLs expire."""

from __future__ import annotations

import random
import signal
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from compose.local.stack import LocalStack
from tests.filesstack import Run, files_run
from tests.media import describe, make, quiet
from topics import specs
from topics.files_events import JobCompleted, JobFailed

pytestmark = [pytest.mark.stack, pytest.mark.slow]

#: Where the first worker is killed: each stage of an attempt, and around the commits that carry what came of it.
FAULTS = (
    "prepare.before=kill@2",
    "prepare.after=kill@3",
    "convert.during=kill@6",
    "convert.after=kill@2",
    "verify.before=kill@2",
    "verify.after=kill@2",
    "commit.after=kill@25",
)
SECONDS = 2.0
#: URLs are good for so long, seconds.
URL_S = 4


@dataclass(frozen=True)
class Kind:
    """What a job is to be made of, and how it then ends: completed, cancelled, or failed for a reason."""

    source: str
    format: str = "mp3"
    end: str = "JobCompleted"
    reason: str = ""


KINDS = {
    "sound": Kind("clip"),
    "picture": Kind("clip", "mp4"),
    "whole": Kind("clip", "flac"),
    "broken": Kind("broken", end="JobFailed", reason="not_media"),
    "missing": Kind("missing", end="JobFailed", reason="source_missing"),
    "unwanted": Kind("endless", "opus", end="JobCancelled"),
}


class Crowd:
    """Jobs of all kinds in an order from a seed."""

    def __init__(self, run: Run, folder: Path, count: int, seed: int) -> None:
        self._run = run
        self._folder = folder
        put = run.objects.put
        self._sources = {
            "clip": put("uploads/chaos/clip.webm", make(folder / "clip.webm", SECONDS).read_bytes()),
            "endless": put("uploads/chaos/endless.flac", quiet(folder / "endless.flac", 2.0).read_bytes()),
            "broken": put("uploads/chaos/broken.webm", b"no media" * 1_000),
            "missing": "uploads/chaos/missing.webm",
        }
        names = list(KINDS)
        self.kinds = {f"{names[n % len(names)]}-{n}": names[n % len(names)] for n in range(count)}
        self.waiting = list(self.kinds)
        random.Random(seed).shuffle(self.waiting)

    def submit(self, count: int) -> None:
        """Submit the next ones, some of them twice."""
        for job_id in self.waiting[:count]:
            kind = KINDS[self.kinds[job_id]]
            for _ in range(1 + (len(job_id) % 3 == 0)):
                self._run.jobs.submit(job_id, self._sources[kind.source], kind.format, user=f"user {len(job_id) % 4}")
        del self.waiting[:count]

    def more(self) -> None:
        """Submit one more, of a kind that is converted to its end."""
        job_id = f"sound-{len(self.kinds)}"
        self.kinds[job_id] = "sound"
        self.waiting.append(job_id)
        self.submit(1)

    def cancel_begun(self) -> None:
        """Cancel those that are not wanted and are under way."""
        for job_id, told in self._run.told().items():
            if self.kinds[job_id] == "unwanted" and told.attempts and told.end is None:
                self._run.jobs.cancel(job_id)

    def assert_ended(self) -> Counter[str]:
        """Every job ended once, as its kind has it, after no more attempts than that takes; what it came to in figures."""
        run = self._run
        run.assert_sound()
        told = run.told()
        assert set(told) == set(self.kinds)
        figures: Counter[str] = Counter(jobs=len(told))
        for job_id, name in self.kinds.items():
            kind, end, void = KINDS[name], told[job_id].end, told[job_id].voided()
            assert type(end).__name__ == kind.end, f"{job_id} ended as {end}"
            if isinstance(end, JobFailed):
                assert end.error_type == kind.reason, end
            retries = len(void) - void.count("lost")
            assert retries <= run.settings.files_retries
            assert told[job_id].attempts == len(void) + (not isinstance(end, JobFailed) or end.error_type != "lost")
            figures += Counter(attempts=told[job_id].attempts, lost=void.count("lost"), retries=retries)
            figures += Counter(f"again:{why}" for why in void)
            if isinstance(end, JobCompleted):
                found = describe(run.objects.get(end.r2_key, self._folder / "result"))
                assert abs(found.seconds - SECONDS) < 0.3 and (found.video is not None) == (kind.format == "mp4")
        letters = Counter(
            (k.decode(), headers["reason"].decode()) for k, _, headers in run.read(specs.FILES_DEADLETTER)
        )
        failed = {job_id: KINDS[name].reason for job_id, name in self.kinds.items() if KINDS[name].reason}
        assert letters == Counter(failed.items()), "dead letters are the failed jobs, each once"
        return figures


def _pause(run: Run, seconds: float) -> None:
    over = time.monotonic() + seconds
    run.until(lambda: time.monotonic() > over, "the pause is over")


def _freeze(run: Run) -> None:
    """The second worker loses its partitions while it is frozen, its converters go on and upload late, and then it goes on as
    if it had them."""
    frozen = run.workers[1]
    if frozen.running:
        frozen.signal(signal.SIGSTOP)
        run.until(lambda: run.worker.owns() == set(range(run.settings.partitions)), "the other one owns all")
        frozen.signal(signal.SIGCONT)


def _drain(run: Run) -> None:
    if run.workers[1].running:
        run.workers[1].signal(signal.SIGTERM)


def _kill(run: Run) -> None:
    if run.worker.running:
        run.worker.signal(signal.SIGKILL)


def _at_work(run: Run) -> list[psutil.Process]:
    """The converters' processes, once there are any; none if all that were submitted soon ended without."""
    over, found = time.monotonic() + 10.0, list[psutil.Process]()

    def met() -> bool:
        found[:] = run.converting()
        return bool(found) or time.monotonic() > over

    run.until(met, "files are converted")
    return found


def _kill_converters(run: Run) -> None:
    for process in _at_work(run):
        with suppress(psutil.Error):
            process.kill()


def _let_urls_expire(run: Run) -> None:
    """All converters stand still until no URL that they were given works any more."""
    frozen = _at_work(run)
    for process in frozen:
        with suppress(psutil.Error):
            process.suspend()
    _pause(run, URL_S + 1.0)
    for process in frozen:
        with suppress(psutil.Error):
            process.resume()


def _without_s3(run: Run) -> None:
    run.stack.s3.kill()
    _pause(run, 2.0)
    run.stack.s3.start()


def _restart_kafka(run: Run) -> None:
    run.stack.kafka.kill()
    run.stack.kafka.start()


def _through(run: Run, crowd: Crowd, accidents: Sequence[Callable[[Run], None]], deadline_s: float) -> None:
    """Submit the crowd in as many parts as there are accidents, one after each part; then wait for the ends of all."""
    part = -(-len(crowd.waiting) // len(accidents))
    for accident in accidents:
        crowd.submit(part)
        _pause(run, 1.0)
        accident(run)
        crowd.cancel_begun()

    def over() -> bool:
        crowd.cancel_begun()
        return run.ended() == set(crowd.kinds)

    run.until(over, "all have ended", deadline_s)
    run.until(lambda: run.to_sweep() == 0, "what lost is swept for good", deadline_s)


def _assert_all(run: Run, crowd: Crowd) -> None:
    """Every job ended once, and every planned kill fell; more jobs come for those that did not among the first."""

    def fell() -> bool:
        if run.worker.fired() != run.worker.planned() and run.ended() == set(crowd.kinds):
            crowd.more()
        return run.worker.fired() == run.worker.planned() and run.ended() == set(crowd.kinds)

    run.until(fell, "the planned kills fall", 120)
    run.until(lambda: run.to_sweep() == 0, "what lost is swept for good", 90)
    figures = crowd.assert_ended()
    codes = [Counter(worker.codes) for worker in run.workers]
    print(f"chaos: files: {dict(figures)}, fired={sorted(run.worker.fired())}, {codes=}")
    assert figures["lost"] > 0 and run.worker.fired() == run.worker.planned()


SETTINGS = {
    "files_retries": 6,
    "files_url_s": URL_S,
    "converter_transfer_s": 3.0,
    "files_sweep_s": URL_S + 3.0,
    "files_per_user": 4,
}


def test_every_job_ends_once(stack: LocalStack, tmp_path: Path) -> None:
    faults = "prepare.after=kill@1,convert.after=kill@1,verify.after=kill@1"
    with files_run(stack, tmp_path, workers=2, faults=faults, **SETTINGS) as run:
        crowd = Crowd(run, tmp_path, 12, seed=7)
        _through(run, crowd, [_freeze, _without_s3, _let_urls_expire], 90)
        _assert_all(run, crowd)


@pytest.mark.long
def test_a_hundred_jobs_end_once(stack: LocalStack, tmp_path: Path) -> None:
    with files_run(stack, tmp_path, workers=2, faults=",".join(FAULTS), **SETTINGS) as run:
        crowd, chance = Crowd(run, tmp_path, 102, seed=11), random.Random(11)
        accidents: dict[Callable[[Run], None], int] = {
            _kill: 4,
            _freeze: 4,
            _drain: 3,
            _kill_converters: 3,
            _without_s3: 3,
            _let_urls_expire: 2,
            _restart_kafka: 2,
        }
        storm = chance.choices(list(accidents), list(accidents.values()), k=10)
        _through(run, crowd, [*storm, *accidents], 500)
        _assert_all(run, crowd)
