"""Builds the kernels in topics/native: plain C, compiled by the compiler that the build's own requirements bring along."""

from __future__ import annotations

import hashlib
import os
import platform
import subprocess
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

#: The oldest C library that numpy's and pyarrow's own wheels run on.
GLIBC = "2.28"


class BuildKernels(build_ext):
    """A shared library for ctypes, not a Python module: no Python headers are needed, and any Python loads it."""

    def get_ext_filename(self, fullname: str) -> str:
        return str(Path(*fullname.split(".")).with_suffix(".so"))

    def build_extension(self, ext: Extension) -> None:
        target = Path(self.get_ext_fullpath(ext.name))
        target.parent.mkdir(parents=True, exist_ok=True)
        machine = [] if sys.platform != "linux" else ["-target", f"{platform.machine()}-linux-gnu.{GLIBC}"]
        sources = hashlib.sha256(b"".join(path.read_bytes() for path in sorted(NATIVE.glob("*.[ch]")))).hexdigest()
        flags = [
            f'-DSW_SOURCES="{sources}"',
            "-O3",
            "-std=c11",
            "-Wall",
            "-Wextra",
            "-Werror",
            "-fPIC",
            "-shared",
            "-fno-sanitize=undefined",
            *machine,
        ]
        cache = str(Path(self.build_temp).resolve() / "compiler")
        subprocess.run(
            [sys.executable, "-m", "ziglang", "cc", *flags, "-o", str(target), *ext.sources],
            check=True,
            env={**os.environ, "ZIG_GLOBAL_CACHE_DIR": cache, "ZIG_LOCAL_CACHE_DIR": cache},
        )


NATIVE = Path("topics/native")

setup(
    ext_modules=[Extension("topics.native.kernels", [str(path) for path in sorted(NATIVE.glob("*.c"))])],
    cmdclass={"build_ext": BuildKernels},
)
