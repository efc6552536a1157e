"""Which ffmpeg is run."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import NoReturn

import imageio_ffmpeg
import pytest

from compose import ffmpeg


def test_it_is_found_without_being_tried_out(monkeypatch: pytest.MonkeyPatch) -> None:
    def killed(*_: object, **__: object) -> NoReturn:
        raise subprocess.CalledProcessError(-9, "ffmpeg")

    monkeypatch.delenv("IMAGEIO_FFMPEG_EXE", raising=False)
    monkeypatch.setattr(subprocess, "check_call", killed)
    imageio_ffmpeg._utils._get_ffmpeg_exe.cache_clear()
    ffmpeg.executable.cache_clear()
    found = Path(ffmpeg.executable())
    assert found.is_file() and found.is_relative_to(Path(imageio_ffmpeg.__file__).parent)
    imageio_ffmpeg._utils._get_ffmpeg_exe.cache_clear()
    ffmpeg.executable.cache_clear()


def test_the_one_that_is_named_comes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IMAGEIO_FFMPEG_EXE", "/opt/ffmpeg")
    ffmpeg.executable.cache_clear()
    assert ffmpeg.executable() == "/opt/ffmpeg"
    ffmpeg.executable.cache_clear()
