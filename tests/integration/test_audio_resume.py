"""A recording made of parts, through SIGKILLs between them, against a server that lists open uploads as R2 does."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from compose.local.stack import LocalStack
from tests.audiostack import Run, Session, audio_run, new_session, noise
from tests.objectstores import ObjectStore, versitygw
from topics.audio import Chunk, Close, Store
from topics.audio_events import recording_key, session_prefix

pytestmark = pytest.mark.stack

#: A WAV of 48 kHz stereo: three parts of 5 MiB, sent as 2, 3 and 1.
CHUNKS = 460
PARTS = [2, 3, 1]
BIG: dict[str, Any] = {"audio_upload_after_s": 10.0, "audio_window_s": 25.0, "audio_session_idle_s": 300.0}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory, versity: Path) -> Iterator[ObjectStore]:
    with versitygw(tmp_path_factory.mktemp("versitygw"), versity) as store:
        yield store


@pytest.fixture
def run(stack: LocalStack, store: ObjectStore, tmp_path: Path) -> Iterator[Run]:
    store.proxy.reset()
    server = f"http://127.0.0.1:{store.server.port}"
    with audio_run(stack, tmp_path, store_url=server, s3_endpoint=store.proxy.url, **BIG) as run:
        yield run


def kill_after_part(run: Run, store: ObjectStore) -> None:
    """SIGKILL the worker when the store has served one more part, before it hears of that."""
    store.proxy.then("UploadPart", lambda: run.worker.signal(signal.SIGKILL))


def recorded(run: Run) -> Session:
    """A session said at once and closed, and recorded at last."""
    session = new_session(0, rate=48_000, channels=2, store=Store.WAV)
    run.talker.say(session.opened)
    for seq in range(CHUNKS):
        session.chunks[seq] = noise(9, seq, session.opened)
        run.talker.say(Chunk(session.id, seq, 0, None, session.chunks[seq]))
    run.talker.say(Close(session.id))
    run.talker.flush()
    run.until(lambda: run.state(session).get("status") == "closed", "the session is closed", 120)
    run.until(lambda: not run.objects(f"{session_prefix(session.id)}segments/"), "segments are removed")
    run.assert_recorded(session, [])
    return session


def open_uploads(store: ObjectStore) -> list[str]:
    return [found["Key"] for found in store.raw().list_multipart_uploads(Bucket="sluiceway").get("Uploads", ())]


def test_parts_that_the_store_has_are_not_sent_again(run: Run, store: ObjectStore) -> None:
    kill_after_part(run, store)
    kill_after_part(run, store)
    rivals: list[str] = []

    def rival() -> None:
        """What an owner that was fenced begins beside the rightful one."""
        key = recording_key(next(iter(run.objects("audio/"))).split("/")[1], "wav")
        rivals.append(store.raw().create_multipart_upload(Bucket="sluiceway", Key=key)["UploadId"])

    store.proxy.then("CompleteMultipartUpload", rival)
    recorded(run)
    assert run.worker.codes == [-signal.SIGKILL] * 2
    assert store.proxy.parts() == PARTS
    assert store.proxy.count("CreateMultipartUpload") == 1
    assert rivals and open_uploads(store) == []


def test_an_upload_that_the_store_has_lost_is_begun_again(run: Run, store: ObjectStore) -> None:
    kill_after_part(run, store)
    store.proxy.lose_upload("UploadPart")
    session = recorded(run)
    assert run.worker.codes == [-signal.SIGKILL]
    assert store.proxy.parts() == [*PARTS[:2], *PARTS]
    assert store.proxy.count("CreateMultipartUpload") == 2
    # It is lost behind the proxy only: what the worker cannot end any more, a sweep does.
    key = recording_key(session.id, "wav")
    assert open_uploads(store) == [key]
    run.until(lambda: run.rows("SELECT DISTINCT status FROM audio_sessions") == [("closed",)], "ClickHouse shows it")
    assert [(found["kind"], found["key"]) for found in run.clean()["removed"]] == [("upload", key)]
    assert open_uploads(store) == []
