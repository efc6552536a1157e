"""Small, middling and large files, and many at once, from the upload to the download: none of them passes through a
coordinator (a gateway, or a worker beside its converters), whose memory is the same for all."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from compose.bench.process import rss_peak_bytes
from compose.local.stack import LocalStack
from tests.audiostack import Gateway
from tests.filesstack import Run, files_run
from tests.media import describe, large

pytestmark = pytest.mark.stack

MB = 1_000_000
#: How far apart the memory of two scenes may be.
FLAT_BYTES = 20 * MB
#: Requests, Kafka's records and its polls, and figures, of a whole scene; and what it may have more with files that take longer.
WORDS_BYTES, WORDS_SHARE = 2 * MB, 0.02
TRANSFERS: dict[str, Any] = {
    "converter_transfer_s": 120.0,
    "files_url_s": 300,
    "files_sweep_s": 600.0,
    "files_relay": True,
    "converter_source_mb": 600,
}


@dataclass(frozen=True)
class Scene:
    """`users` files of `size_mb` at once."""

    size_mb: int
    users: int = 1


@dataclass(frozen=True)
class Taken:
    """What one process had at most, and what it read, bytes: of files, pipes and connections together."""

    peak: int
    moved: int


class Watch:
    """The coordinators, from now on; the kernel's own peak is begun anew, so that no moment is missed."""

    def __init__(self, pids: dict[str, int]) -> None:
        self._pids = pids
        self._moved = {name: _moved(pid) for name, pid in pids.items()}
        for pid in pids.values():
            Path(f"/proc/{pid}/clear_refs").write_text("5")

    def taken(self) -> dict[str, Taken]:
        """Since then."""
        return {n: Taken(rss_peak_bytes(pid), _moved(pid) - self._moved[n]) for n, pid in self._pids.items()}


def _moved(pid: int) -> int:
    # The event loops read their connections as files are read, so this counts all that comes in; what goes out by `send` it
    # does not. The process as a whole would count its children too, once they have ended.
    lines = [line for task in Path(f"/proc/{pid}/task").glob("*/io") for line in task.read_text().splitlines()]
    return sum(int(line.split()[1]) for line in lines if line.startswith("rchar:"))


def test_small_and_middling_files_and_a_few_at_once(stack: LocalStack, tmp_path: Path) -> None:
    _play(stack, tmp_path, [Scene(1), Scene(40), Scene(5, users=4)])


@pytest.mark.long
def test_files_up_to_500_mb_and_many_at_once(stack: LocalStack, tmp_path: Path) -> None:
    _play(stack, tmp_path, [Scene(1), Scene(9), Scene(60), Scene(500), Scene(10, users=20)])


def _play(stack: LocalStack, folder: Path, scenes: Sequence[Scene]) -> None:
    with files_run(stack, folder, **TRANSFERS) as run:
        made = Gateway(run, "gateway").start()
        try:
            with httpx.Client(base_url=made.url, timeout=60) as gateway:
                wanted = {"file_name": "1.wav", "content_type": "audio/wav", "size_bytes": 1}
                run.until(lambda: gateway.post("/api/uploads", json=wanted).status_code == 200, "uploads are taken")
                pids = {"gateway": made.process.pid, "worker": run.worker.pid}
                # Code that is met for the first time is read from the disk.
                _convert_all(run, gateway, Scene(1), folder)
                first: dict[str, Taken] = {}
                for scene in scenes:
                    words = WORDS_BYTES + WORDS_SHARE * scene.size_mb * MB * scene.users
                    watch = Watch(pids)
                    _convert_all(run, gateway, scene, folder)
                    taken = watch.taken()
                    print(scene, taken)
                    first = first or taken
                    for name in pids:
                        assert abs(taken[name].peak - first[name].peak) < FLAT_BYTES, (scene, name, first, taken)
                        assert taken[name].moved < words, (scene, name, taken)
                _assert_that_a_relay_is_seen(gateway, pids, folder)
            run.assert_sound()
            assert run.worker.pid == pids["worker"], "it is the worker that was watched"
        finally:
            made.stop()
            for prefix in ("uploads/", "converted/"):
                run.objects.clear(prefix)


def _assert_that_a_relay_is_seen(gateway: httpx.Client, pids: dict[str, int], folder: Path) -> None:
    """What goes through a coordinator shows in the figures that are said to be small."""
    watch, file = Watch(pids), large(folder / "relay.wav", 8)
    with file.open("rb") as body:
        headers = {"Content-Type": "audio/wav", "Content-Length": str(file.stat().st_size)}
        answer = gateway.post("/api/relay?file_name=relay.wav", content=body, headers=headers)
    assert answer.status_code == 200, answer.text
    assert watch.taken()["gateway"].moved > 8 * MB


def _convert_all(run: Run, gateway: httpx.Client, scene: Scene, folder: Path) -> None:
    source = large(folder / f"{scene.size_mb}.wav", scene.size_mb)
    with ThreadPoolExecutor(scene.users) as users:
        done = [users.submit(_convert, run, gateway, source, f"user{number}", folder) for number in range(scene.users)]
        for one in done:
            one.result()


def _convert(run: Run, gateway: httpx.Client, source: Path, user: str, folder: Path) -> None:
    """Up, converted and down again, as a client does it."""
    asked = {"source": {"key": _upload(gateway, source)}, "format": "wav", "quality": "high", "user": user}
    told: dict[str, Any] = {}

    def taken() -> bool:
        answer = gateway.post("/api/convert", json=asked)
        told.update(answer.json())
        return answer.status_code == 202

    run.until(taken, "the job is taken", 30)
    path = f"/api/convert/{told['job_id']}"
    ends = ("completed", "failed", "cancelled")
    run.until(lambda: gateway.get(path).json().get("status") in ends, "the job is over", 180)
    state = gateway.get(path).json()
    assert state["status"] == "completed", state
    down = folder / f"{source.stem}-{user}.down.wav"
    with httpx.stream("GET", state["download_url"], timeout=60) as answer, down.open("wb") as file:
        assert answer.status_code == 200
        for block in answer.iter_bytes(1 << 20):
            file.write(block)
    assert down.stat().st_size == state["size_bytes"] > source.stat().st_size // 2
    found = describe(down)
    assert found.audio == "pcm_s24le" and abs(found.seconds * 1_000 - state["duration_ms"]) < 200
    down.unlink()


def _upload(gateway: httpx.Client, source: Path) -> str:
    size = source.stat().st_size
    wanted = {"file_name": source.name, "content_type": "audio/wav", "size_bytes": size}
    begun = gateway.post("/api/uploads", json=wanted)
    assert begun.status_code == 200, begun.text
    upload = begun.json()
    done: dict[str, Any] = {"key": upload["key"]}
    with source.open("rb") as file:
        if "parts" in upload:
            parts = []
            for part in upload["parts"]:
                etag = _put(part["upload_url"], file.read(upload["part_size"]), {})
                parts.append({"part_number": part["part_number"], "etag": etag})
            done |= {"upload_id": upload["upload_id"], "parts": parts}
        else:
            _put(upload["upload_url"], file.read(), upload["headers"])
    stored = gateway.post("/api/uploads/complete", json=done)
    assert stored.status_code == 200 and stored.json()["size_bytes"] == size, stored.text
    return str(upload["key"])


def _put(url: str, data: bytes, headers: dict[str, str]) -> str:
    answer = httpx.put(url, content=data, headers=headers, timeout=60)
    assert answer.status_code == 200, answer.text
    return str(answer.headers.get("ETag", ""))
