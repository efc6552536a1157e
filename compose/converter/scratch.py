"""Scratch folders: one a conversion, gone when it ends, and at the next start if its process was killed."""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import structlog

log = structlog.get_logger(__name__)


class Scratch:
    """A folder of this process below `root`, shared with other converters; what dead ones have left is removed."""

    def __init__(self, root: Path) -> None:
        root.mkdir(parents=True, exist_ok=True)
        # Held for as long as the process lives, however it ends: the kernel lets go of it.
        with _held(root / "sweep.lock"):
            for left in sorted(root.glob("converter-*")):
                if (lock := _try(left / "lock")) is not None:
                    log.info("scratch_swept", folder=left.name)
                    shutil.rmtree(left, ignore_errors=True)
                    os.close(lock)
            self.folder = Path(tempfile.mkdtemp(prefix="converter-", dir=root))
            self._lock = _try(self.folder / "lock")
        assert self._lock is not None, "a new folder is nobody else's"

    @contextmanager
    def job(self) -> Iterator[Path]:
        """A folder for one conversion."""
        folder = Path(tempfile.mkdtemp(prefix="job-", dir=self.folder))
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def close(self) -> None:
        """Remove all."""
        shutil.rmtree(self.folder, ignore_errors=True)
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None


@contextmanager
def _held(path: Path) -> Iterator[None]:
    with path.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _try(path: Path) -> int | None:
    """The lock of a folder, if nobody has it."""
    lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(lock)
        return None
    return lock
