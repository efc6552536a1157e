"""versitygw, an S3 server that is strict about signatures, sums and parts: built once by Go, run over a folder."""

from __future__ import annotations

import fcntl
import http.client
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path

from compose.local.server import Server

VERSION = "v1.8.0"
PACKAGE = f"github.com/versity/versitygw/cmd/versitygw@{VERSION}"
BUILD_DEADLINE_S = 1_800.0


class CannotBuild(Exception):
    """Why there is no binary."""


def versitygw_binary(cache_dir: Path, say: Callable[[str], None]) -> Path:
    """The binary, built first if the cache lacks it: a few minutes. Raises CannotBuild."""
    cache_dir = cache_dir.expanduser()
    binary = cache_dir / f"versitygw-{VERSION}" / "versitygw"
    cache_dir.mkdir(parents=True, exist_ok=True)
    # Of two runs side by side the second finds what the first has built.
    with (cache_dir / f"versitygw-{VERSION}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not binary.exists():
            _build(binary, say)
    return binary


def _build(binary: Path, say: Callable[[str], None]) -> None:
    go = shutil.which("go")
    if go is None:
        raise CannotBuild("there is no Go on this machine")
    say(f"building versitygw {VERSION} into {binary.parent} (minutes, this once)")
    binary.parent.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=binary.parent) as staging:
        env = {**os.environ, "GOBIN": staging, "CGO_ENABLED": "0"}
        try:
            ran = subprocess.run(
                [go, "install", PACKAGE], env=env, timeout=BUILD_DEADLINE_S, capture_output=True, text=True
            )
        except subprocess.TimeoutExpired:
            raise CannotBuild(f"`go install {PACKAGE}` took more than {BUILD_DEADLINE_S:g} s") from None
        if ran.returncode != 0:
            raise CannotBuild(f"`go install {PACKAGE}` failed: {ran.stderr.strip()[-500:]}")
        (Path(staging) / "versitygw").rename(binary)


class VersityGW(Server):
    """The server, with one key pair and one bucket made at start."""

    name = "versitygw"

    def __init__(self, binary: Path, folder: Path, port: int) -> None:
        super().__init__(folder, port, "no setting")
        self._binary = binary

    def _launch(self, deadline_s: float) -> None:
        objects, sidecar = self.folder / "objects", self.folder / "sidecar"
        (objects / "sluiceway").mkdir(parents=True, exist_ok=True)
        sidecar.mkdir(exist_ok=True)
        argv = [str(self._binary), "--port", f"127.0.0.1:{self.port}", "--region", "auto", "--quiet"]
        # Metadata in files of its own, as not every folder of a test machine takes extended attributes.
        argv += ["posix", "--sidecar", str(sidecar), str(objects)]
        keys = {"ROOT_ACCESS_KEY_ID": "sluiceway", "ROOT_SECRET_ACCESS_KEY": "sluiceway-secret"}
        self._run(argv, deadline_s, env={"PATH": os.defpath, "HOME": str(self.folder), **keys})

    def answers(self) -> bool:
        """Whether it answers; a refusal of an unsigned request is an answer."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=2)
        try:
            connection.request("GET", "/")
            return connection.getresponse().status < 500
        except (OSError, http.client.HTTPException):
            return False
        finally:
            connection.close()
