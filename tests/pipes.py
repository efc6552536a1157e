"""What a child process says, read by a deadline."""

from __future__ import annotations

import select
from typing import IO


def first_line(pipe: IO[bytes] | None, deadline_s: float) -> bytes:
    """The first line of a child's output; empty when it has ended without one. Fails the test past the deadline."""
    assert pipe is not None
    assert select.select([pipe], [], [], deadline_s)[0], f"no word within {deadline_s:g} s"
    return pipe.readline()
