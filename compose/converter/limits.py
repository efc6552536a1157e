"""How much one conversion may take, and how a child process is held to it."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence
from dataclasses import dataclass

# Between fork and exec in a fresh interpreter, as in compose.local.process; the limits hold for what is executed. Past its CPU
# time a process is told so, and killed two seconds later.
_LIMITED = (
    "import ctypes,os,resource,sys\n"
    "parent=int(sys.argv[1])\n"
    "if sys.platform=='linux':\n"
    "    ctypes.CDLL(None).prctl(1,int(sys.argv[2]))\n"
    "    os.getppid()==parent or sys.exit(1)\n"
    "for name,most in zip(('CPU','AS','FSIZE','CORE','NOFILE'),map(int,sys.argv[3:8])):\n"
    "    resource.setrlimit(getattr(resource,'RLIMIT_'+name),(most,most+2*(name=='CPU')))\n"
    "os.nice(5)\n"
    "os.execv(sys.argv[8],sys.argv[8:])\n"
)
_FILES_MAX = 64


@dataclass(frozen=True, kw_only=True)
class ConverterLimits:
    """Bounds of one conversion. `duration_s` is how long a source may play."""

    source_bytes: int = 2 << 30
    fetch_s: float = 600.0
    duration_s: float = 4 * 3_600.0
    cpu_s: int = 1_800
    memory_bytes: int = 2 << 30
    wall_s: float = 1_800.0
    output_bytes: int = 2 << 30
    upload_s: float = 600.0
    threads: int = 2


def limited(argv: Sequence[str], limits: ConverterLimits) -> list[str]:
    """`argv` (its program with its full path) as a command that dies with this process and within the limits."""
    most = [limits.cpu_s, limits.memory_bytes, limits.output_bytes, 0, _FILES_MAX]
    shim = [sys.executable, "-I", "-S", "-c", _LIMITED, str(os.getpid()), str(int(signal.SIGKILL))]
    return [*shim, *map(str, most), *argv]
