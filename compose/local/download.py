"""Fetches Kafka's jars once per user, checked against their pinned hashes, into a cache that side-by-side starts share."""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

from compose.local.errors import DiskFull, LocalStackError, NoNetwork, says_disk_full
from compose.local.kafka_jars import KAFKA_JARS, KAFKA_VERSION, Jar

PARALLEL_DOWNLOADS = 6
TIMEOUT_S = 30


def kafka_jars(cache_dir: Path, repository: str | None = None, console: Console | None = None) -> list[Path]:
    """Paths of Kafka's jars, downloaded first if the cache lacks them.

    `repository` is the URL of a Maven repository (default: Maven Central). Raises NoNetwork, DiskFull, or
    LocalStackError for a jar that is not the pinned one.
    """
    cache_dir = cache_dir.expanduser()
    folder = cache_dir / f"kafka-{KAFKA_VERSION}"
    try:
        cache_dir.mkdir(parents=True, exist_ok=True)
        with _locked(cache_dir / f"kafka-{KAFKA_VERSION}.lock"):
            if not folder.exists():
                _download(folder, repository, console or Console(stderr=True))
    except OSError as error:
        if says_disk_full(str(error)):
            raise DiskFull(f"Kafka's jars do not fit into {cache_dir}. Free 100 MB there and start again.") from None
        raise
    return [folder / jar.file_name for jar in KAFKA_JARS]


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Held by one process at a time: of two first starts side by side the second finds the first one's files."""
    with path.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _download(folder: Path, repository: str | None, console: Console) -> None:
    total = sum(jar.size_bytes for jar in KAFKA_JARS)
    console.print(f"Fetching Apache Kafka {KAFKA_VERSION} ({total / 1e6:.0f} MB, this once) into {folder}")
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    # Renamed into place when complete, so that a start broken off leaves nothing half done.
    staging = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    pool = ThreadPoolExecutor(PARALLEL_DOWNLOADS)
    try:
        with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
            task = progress.add_task("Kafka", total=total)
            for jar, path in zip(KAFKA_JARS, pool.map(_fetcher(staging, repository), KAFKA_JARS), strict=True):
                _check(jar, path)
                path.replace(staging / jar.file_name)
                progress.advance(task, jar.size_bytes)
        shutil.rmtree(staging / "m2")
        os.rename(staging, folder)
    finally:
        # What is under way ends first: a download must not write into a folder that is being removed.
        pool.shutdown(cancel_futures=True)
        shutil.rmtree(staging, ignore_errors=True)


def _fetcher(staging: Path, repository: str | None) -> Callable[[Jar], Path]:
    """A function that downloads one jar through a Maven context of its own folder."""
    import requests
    from jgo.maven import MavenContext

    remotes = {"repository": repository} if repository else None
    context = MavenContext(repo_cache=staging / "m2", local_repos=[], remote_repos=remotes, timeout=TIMEOUT_S)

    def fetch(jar: Jar) -> Path:
        group, artifact, version = jar.coordinate.split(":")
        try:
            return Path(context.project(group, artifact).at_version(version).artifact().resolve())
        except requests.RequestException as error:
            raise NoNetwork(
                f"Kafka's jars are not in {staging.parent} yet and the Maven repository does not answer "
                f"({type(error).__name__}). Connect to the network for the first start, or copy that folder from a "
                "machine that has it."
            ) from None
        except RuntimeError as error:
            raise LocalStackError(f"{jar.coordinate} cannot be had from the Maven repository: {error}") from None

    return fetch


def _check(jar: Jar, path: Path) -> None:
    found = hashlib.sha256(path.read_bytes()).hexdigest()
    if found != jar.sha256:
        raise LocalStackError(
            f"{jar.coordinate} has SHA-256 {found} where {jar.sha256} is pinned: the repository served another file. "
            "Nothing was kept; check what the network puts between this machine and the repository."
        )
