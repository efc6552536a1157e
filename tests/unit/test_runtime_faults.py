"""A plan of faults strikes at the passage it names, once for a scratch folder, and a wrong plan says what is right."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from streams.runtime.faults import POINTS, Faults

_PROGRAM = """
import sys
from pathlib import Path
from streams.runtime.faults import Faults
faults = Faults(sys.argv[1], Path(sys.argv[2]) if len(sys.argv) > 2 else None)
for passage in range(1, 6):
    print(passage, flush=True)
    faults.reach("fold")
    faults.reach("send.before")
"""


def _run(plan: str, *scratch: str) -> tuple[int, int]:
    """Exit code and the last passage of a process that passes two points five times."""
    ended = subprocess.run([sys.executable, "-c", _PROGRAM, plan, *scratch], capture_output=True, text=True, timeout=30)
    assert not ended.stderr
    return ended.returncode, int(ended.stdout.split()[-1])


def test_no_plan_no_fault() -> None:
    faults = Faults()
    for point in POINTS:
        faults.reach(point)
    assert _run("") == (0, 5)


def test_a_kill_comes_at_its_passage() -> None:
    assert _run("fold=kill@3, fetch=kill") == (-signal.SIGKILL, 3)
    assert _run("send.before=kill") == (-signal.SIGKILL, 1)


def test_each_entry_strikes_once_over_restarts(tmp_path: Path) -> None:
    plan = "fold=kill@2,send.before=kill@2"
    assert _run(plan, str(tmp_path)) == (-signal.SIGKILL, 2)
    assert _run(plan, str(tmp_path)) == (-signal.SIGKILL, 2)
    assert _run(plan, str(tmp_path)) == (0, 5)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["fold=kill@2", "send.before=kill@2"]


@pytest.mark.parametrize("plan", ["fold", "fold=", "nowhere=kill", "fold=explode@2", "fold=kill,="])
def test_a_plan_that_names_nothing_is_refused(plan: str) -> None:
    with pytest.raises(ValueError, match=r"is no fault: points are fetch, .*; actions kill, stop"):
        Faults(plan)
