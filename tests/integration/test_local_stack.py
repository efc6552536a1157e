"""The local stack starts, stops, restarts on its data, and says clearly what is in its way."""

from __future__ import annotations

import hashlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import boto3
import clickhouse_connect
import psutil
import pytest
from botocore.config import Config
from botocore.exceptions import ClientError
from confluent_kafka import Consumer, KafkaError, KafkaException, Producer, TopicPartition
from confluent_kafka.admin import AdminClient, NewTopic

from compose.local.clickhouse import ClickHouse
from compose.local.download import kafka_jars
from compose.local.errors import DiskFull, FolderHeld, LocalStackError, NoNetwork, PortTaken, StartFailed
from compose.local.kafka import Kafka
from compose.local.kafka_jars import KAFKA_JARS
from compose.local.process import Child, free_port
from compose.local.s3 import S3
from compose.local.stack import LocalStack
from compose.settings import Settings, load
from tests.disks import small_disk
from tests.pipes import first_line

pytestmark = pytest.mark.stack

DEADLINE_S = 20.0


def _until(true: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not true():
        assert time.monotonic() < deadline, f"{what} not within {DEADLINE_S} s"
        time.sleep(0.05)


def _objects(settings: Settings, secret: str | None = None) -> Any:
    return boto3.client(
        "s3",
        endpoint_url=settings.s3_endpoint,
        aws_access_key_id=settings.s3_access_key,
        aws_secret_access_key=secret or settings.s3_secret_key,
        region_name=settings.s3_region,
        config=Config(signature_version="s3v4", retries={"max_attempts": 1}),
    )


def _topic(bootstrap: str, name: str) -> None:
    quiet = AdminClient({"bootstrap.servers": bootstrap, "log_level": 0})
    quiet.create_topics([NewTopic(name, 1, 1)])[name].result(DEADLINE_S)


def _produce(bootstrap: str, topic: str, value: bytes) -> None:
    producer = Producer({"bootstrap.servers": bootstrap, "acks": "all", "log_level": 0})
    producer.produce(topic, value)
    assert producer.flush(DEADLINE_S) == 0


def _values(bootstrap: str, topic: str, count: int) -> list[bytes]:
    consumer = Consumer({"bootstrap.servers": bootstrap, "group.id": "test", "log_level": 0})
    consumer.assign([TopicPartition(topic, 0, 0)])
    values: list[bytes] = []
    deadline = time.monotonic() + DEADLINE_S
    while len(values) < count:
        assert time.monotonic() < deadline
        message = consumer.poll(0.2)
        if message is not None and message.error() is None:
            values.append(bytes(message.value() or b""))
    consumer.close()
    return values


def test_settings_lead_to_every_server(stack: LocalStack, settings: Settings) -> None:
    assert load(settings.environ()) == settings
    _topic(settings.kafka_bootstrap, "hello")
    _produce(settings.kafka_bootstrap, "hello", b"kafka")
    assert _values(settings.kafka_bootstrap, "hello", 1) == [b"kafka"]
    with clickhouse_connect.get_client(dsn=settings.clickhouse_url) as client:
        assert client.query("SELECT 1").result_rows == [(1,)]
    objects = _objects(settings)
    objects.put_object(Bucket=settings.s3_bucket, Key="a/b", Body=b"s3")
    assert objects.get_object(Bucket=settings.s3_bucket, Key="a/b")["Body"].read() == b"s3"


def test_a_wrong_key_is_refused_and_the_right_one_not_shown(stack: LocalStack, settings: Settings) -> None:
    with pytest.raises(ClientError, match="SignatureDoesNotMatch"):
        _objects(settings, "wrong").list_objects_v2(Bucket=settings.s3_bucket)
    assert stack.s3.pid is not None
    assert settings.s3_secret_key not in " ".join(psutil.Process(stack.s3.pid).cmdline())


def test_topics_are_made_on_purpose_only(settings: Settings) -> None:
    producer = Producer({"bootstrap.servers": settings.kafka_bootstrap, "message.timeout.ms": 3000, "log_level": 0})
    errors: list[KafkaError | None] = []
    producer.produce("no.such.topic", b"x", on_delivery=lambda error, _: errors.append(error))
    producer.flush(DEADLINE_S)
    assert errors[0] is not None
    assert errors[0].code() in (KafkaError.UNKNOWN_TOPIC_OR_PART, KafkaError._UNKNOWN_TOPIC, KafkaError._MSG_TIMED_OUT)


def test_a_dead_member_is_replaced_after_its_short_session(settings: Settings) -> None:
    _topic(settings.kafka_bootstrap, "sessions")
    options = {
        "bootstrap.servers": settings.kafka_bootstrap,
        "group.id": "sessions",
        "session.timeout.ms": 6000,
        "heartbeat.interval.ms": 1000,
    }
    script = (
        "import sys, time; from confluent_kafka import Consumer\n"
        f"c = Consumer({options!r}); c.subscribe(['sessions'])\n"
        f"end = time.monotonic() + {DEADLINE_S}\n"
        "while not c.assignment() and time.monotonic() < end: c.poll(0.1)\n"
        "print('mine' if c.assignment() else 'none', flush=True); time.sleep(60)\n"
    )
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE) as first:
        assert first_line(first.stdout, 2 * DEADLINE_S) == b"mine\n"
        first.kill()
    second = Consumer(options)
    second.subscribe(["sessions"])
    _until(lambda: second.poll(0.1) is not None or bool(second.assignment()), "the dead member's partition")
    second.close()


@pytest.mark.parametrize("end", ["stop", "kill"])
def test_a_restart_keeps_data_and_port(stack: LocalStack, settings: Settings, end: str) -> None:
    topic = table = f"kept_{end}"
    _topic(settings.kafka_bootstrap, topic)
    _produce(settings.kafka_bootstrap, topic, b"before")
    with clickhouse_connect.get_client(dsn=settings.clickhouse_url) as client:
        client.command(f"CREATE TABLE {table} (a UInt8) ENGINE = MergeTree ORDER BY a")
        client.insert(table, [(1,)], column_names=["a"])
    _objects(settings).put_object(Bucket=settings.s3_bucket, Key=topic, Body=b"kept")
    for server in stack.servers:
        getattr(server, end)()
        assert not server.alive
    for server in stack.servers:
        server.start()
    _produce(settings.kafka_bootstrap, topic, b"after")
    assert _values(settings.kafka_bootstrap, topic, 2) == [b"before", b"after"]
    with clickhouse_connect.get_client(dsn=settings.clickhouse_url) as client:
        assert client.query(f"SELECT a FROM {table}").result_rows == [(1,)]
    assert _objects(settings).get_object(Bucket=settings.s3_bucket, Key=topic)["Body"].read() == b"kept"


def test_two_stacks_live_side_by_side(stack: LocalStack, settings: Settings, tmp_path: Path) -> None:
    _topic(settings.kafka_bootstrap, "only.here")
    with LocalStack.on_free_ports(tmp_path) as other:
        bootstrap = other.settings().kafka_bootstrap
        assert "only.here" not in AdminClient({"bootstrap.servers": bootstrap}).list_topics(timeout=10).topics
        assert {server.port for server in stack.servers}.isdisjoint(server.port for server in other.servers)
        begun = time.monotonic()
    assert time.monotonic() - begun < 15
    assert not any(server.alive for server in other.servers)
    assert all(server.alive and server.answers() for server in stack.servers)


@pytest.mark.parametrize(
    ("taken", "setting"),
    [
        ("kafka_port", "SLUICEWAY_KAFKA_BOOTSTRAP"),
        ("clickhouse_port", "SLUICEWAY_CLICKHOUSE_URL"),
        ("s3_port", "SLUICEWAY_S3_ENDPOINT"),
        ("model_port", "SLUICEWAY_AI_BASE_URL"),
    ],
)
def test_a_taken_port_is_named_with_its_setting(tmp_path: Path, taken: str, setting: str) -> None:
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        port = holder.getsockname()[1]
        ports = {name: free_port() for name in ("kafka_port", "clickhouse_port", "s3_port", "model_port")} | {
            taken: port
        }
        stack = LocalStack(tmp_path, **ports)
        with pytest.raises(PortTaken, match=rf"127\.0\.0\.1:{port}: .*{setting}"):
            stack.start()
    assert not any(server.alive for server in stack.servers)


def test_a_held_folder_is_refused_with_its_holder(stack: LocalStack) -> None:
    other = LocalStack.on_free_ports(stack.data_dir)
    with pytest.raises(FolderHeld, match=rf"process {os.getpid()}\. .*SLUICEWAY_DATA_DIR"):
        other.start()
    assert all(server.alive for server in stack.servers)
    assert stack.clickhouse.pid is not None
    # Whoever starts a server by itself on that folder is told as well.
    with pytest.raises(StartFailed, match="is in use"):
        ClickHouse(stack.clickhouse.folder, free_port()).start()


def test_a_stack_starts_only_on_this_machine() -> None:
    with pytest.raises(LocalStackError, match=r"SLUICEWAY_KAFKA_BOOTSTRAP=broker:9092"):
        LocalStack.of(Settings(kafka_bootstrap="broker:9092"))
    stack = LocalStack.of(Settings(kafka_bootstrap="127.0.0.1:19092"))
    assert [server.port for server in stack.servers] == [19092, 8123, 9000, 8090]
    real = LocalStack.of(Settings(ai_preset="siliconflow"))
    assert [server.port for server in real.servers] == [9092, 8123, 9000]


def test_a_full_disk_is_told_before_the_start(tmp_path: Path) -> None:
    with pytest.raises(DiskFull, match=r"MB are free .*SLUICEWAY_DATA_DIR"):
        LocalStack.on_free_ports(tmp_path, free_bytes_min=1 << 60).start()


@pytest.mark.parametrize("size", ["4k", "24k"])
def test_a_disk_that_fills_up_is_named(tmp_path: Path, size: str) -> None:
    with small_disk(tmp_path / "disk", size) as disk:
        stack = LocalStack.on_free_ports(disk / "data", free_bytes_min=0)
        with pytest.raises(DiskFull):
            stack.start()
        assert not any(server.alive for server in stack.servers)


def test_a_failed_start_shows_the_end_of_the_log(tmp_path: Path) -> None:
    kafka = Kafka(tmp_path, free_port())
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "meta.properties").write_text("version=1\ncluster.id=one\nnode.id=7\n")
    with pytest.raises(StartFailed, match=r"(?s)kafka\.log:\n.*node id 7"):
        kafka.start()
    assert not kafka.alive


def test_a_process_that_never_answers_is_ended(tmp_path: Path) -> None:
    child = Child("Sleeper", ["sleep", "60"], tmp_path / "sleeper.log")
    child.spawn()
    with pytest.raises(StartFailed, match=r"did not answer within 0\.2 s"):
        child.wait_ready(lambda: False, 0.2)
    assert not child.alive


def test_a_process_deaf_to_sigterm_is_killed(tmp_path: Path) -> None:
    ready = tmp_path / "ready"
    script = "import pathlib, signal, sys, time; signal.signal(15, signal.SIG_IGN)\n"
    script += "pathlib.Path(sys.argv[1]).touch(); time.sleep(60)"
    child = Child("Deaf", [sys.executable, "-c", script, str(ready)], tmp_path / "deaf.log")
    child.spawn()
    child.wait_ready(ready.exists, DEADLINE_S)
    child.stop(deadline_s=0.3)
    assert not child.alive


def test_servers_outlive_the_thread_that_started_them(tmp_path: Path) -> None:
    server = S3(tmp_path, free_port())
    thread = threading.Thread(target=server.start)
    thread.start()
    thread.join(DEADLINE_S)
    assert not thread.is_alive()
    try:
        time.sleep(0.3)  # the signal that must not come has no event to wait for
        assert server.alive
        assert server.answers()
    finally:
        server.stop()


@pytest.mark.skipif(sys.platform != "linux", reason="children die with their parent on Linux only")
def test_servers_die_with_their_parent(tmp_path: Path) -> None:
    script = (
        "import sys, time; from pathlib import Path\n"
        "from compose.local.s3 import S3; from compose.local.process import free_port\n"
        "server = S3(Path(sys.argv[1]), free_port()); server.start()\n"
        "print(server.pid, flush=True); time.sleep(60)\n"
    )
    with subprocess.Popen([sys.executable, "-c", script, str(tmp_path)], stdout=subprocess.PIPE) as parent:
        server = psutil.Process(int(first_line(parent.stdout, DEADLINE_S)))
        assert server.is_running()
        parent.send_signal(signal.SIGKILL)
    _until(lambda: not server.is_running() or server.status() == psutil.STATUS_ZOMBIE, "the server's end")


class _Repository(BaseHTTPRequestHandler):
    """A Maven repository over the jars that this machine has already."""

    jars: Path
    asked: list[str]
    spoil = False

    def do_GET(self) -> None:
        name = self.path.rsplit("/", 1)[-1]
        content = (self.jars / name.removesuffix(".sha1")).read_bytes()
        if self.spoil and name.startswith("snakeyaml"):
            content = content[:-1] + b"!"
        if name.endswith(".sha1"):
            content = hashlib.sha1(content).hexdigest().encode()
        else:
            self.asked.append(name)
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def _repository(**attributes: Any) -> Iterator[tuple[str, list[str]]]:
    jars, asked = kafka_jars(load().cache_dir)[0].parent, []
    handler = type("Handler", (_Repository,), {"jars": jars, "asked": asked, **attributes})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/maven2", asked
        finally:
            server.shutdown()


def test_two_first_starts_fetch_the_jars_once(tmp_path: Path) -> None:
    with _repository() as (url, asked), ThreadPoolExecutor(2) as pool:
        one, two = pool.map(partial(kafka_jars, tmp_path), [url, url])
    assert one == two
    assert [path.stat().st_size for path in one] == [jar.size_bytes for jar in KAFKA_JARS]
    assert sorted(asked) == sorted(jar.file_name for jar in KAFKA_JARS)
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_a_jar_that_is_not_the_pinned_one_is_refused(tmp_path: Path) -> None:
    with _repository(spoil=True) as (url, _), pytest.raises(LocalStackError, match=r"snakeyaml:2\.4 has SHA-256"):
        kafka_jars(tmp_path, url)
    assert [path.name for path in tmp_path.iterdir()] == [f"kafka-{KAFKA_JARS[19].coordinate.split(':')[2]}.lock"]


def test_no_network_at_the_first_start_is_told(tmp_path: Path) -> None:
    kafka = Kafka(tmp_path / "kafka", free_port(), cache_dir=tmp_path / "cache", repository="http://127.0.0.1:1")
    with pytest.raises(NoNetwork, match="Connect to the network for the first start"):
        kafka.start()


def test_a_kafka_client_survives_a_restart(stack: LocalStack, settings: Settings) -> None:
    _topic(settings.kafka_bootstrap, "survivor")
    producer = Producer(
        {"bootstrap.servers": settings.kafka_bootstrap, "transactional.id": "survivor", "reconnect.backoff.max.ms": 500}
    )
    producer.init_transactions(DEADLINE_S)
    stack.kafka.stop()
    stack.kafka.start()
    producer.begin_transaction()
    producer.produce("survivor", b"after")
    try:
        producer.commit_transaction(DEADLINE_S)
    except KafkaException as error:
        pytest.fail(f"the transaction did not outlive the restart: {error}")
    assert _values(settings.kafka_bootstrap, "survivor", 1) == [b"after"]
