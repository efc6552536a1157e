"""A gateway may have as many sockets as it takes connections, where the system lets it."""

from __future__ import annotations

import subprocess
import sys

import pytest

ALLOW = """
import resource, sys
from compose.loop import allow_open_files
resource.setrlimit(resource.RLIMIT_NOFILE, (128, int(sys.argv[1])))
print(allow_open_files(400), *resource.getrlimit(resource.RLIMIT_NOFILE))
"""


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such limit")
@pytest.mark.parametrize(("hard", "soft"), [(600, 400), (300, 300)])
def test_the_soft_limit_of_open_files_is_raised_as_far_as_the_hard_one(hard: int, soft: int) -> None:
    done = subprocess.run([sys.executable, "-c", ALLOW, str(hard)], capture_output=True, text=True, timeout=30)
    assert done.stdout.split() == [str(soft), str(soft), str(hard)], done.stderr
