"""`sluiceway validate`: the verdict and the exit code that a producer's pipeline branches on."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from compose.commands.validate import SHOWN, validate

GOOD = {"event_id": "e", "timestamp_ms": 1, "method": "GET", "path": "/", "status": 200, "client_ip": "::1"}
app = typer.Typer()
app.command()(validate)


def run(path: Path, *options: str) -> tuple[int, str]:
    result = CliRunner().invoke(app, [str(path), *options])
    return result.exit_code, result.output


@pytest.mark.parametrize(
    "content",
    [
        json.dumps(GOOD) + "\n\n" + json.dumps({**GOOD, "event_id": "f"}) + "\r\n",
        json.dumps([GOOD, {**GOOD, "event_id": "f", "more": 1}], indent=1),
    ],
)
def test_valid_events_pass(tmp_path: Path, content: str) -> None:
    path = tmp_path / "events"
    path.write_text(content)
    code, output = run(path)
    assert code == 0
    assert "2 events: 2 valid, 0 invalid" in output
    assert "murmur2" in output


def test_each_bad_line_is_told_with_its_number(tmp_path: Path) -> None:
    path = tmp_path / "events"
    lines = [json.dumps(GOOD), "{", json.dumps({**GOOD, "status": 99}), json.dumps({**GOOD, "client_ip": "x"}), "NaN"]
    path.write_text("\n".join(lines))
    code, output = run(path, "--json")
    verdict = json.loads(output)
    assert code == 1
    assert (verdict["events"], verdict["valid"], verdict["invalid"]) == (5, 1, 4)
    assert [fault["line"] for fault in verdict["faults"]] == [2, 3, 4, 5]
    assert verdict["reasons"] == {"not_json": 2, "invalid": 2}


def test_faults_shown_are_bounded_and_repeats_are_counted(tmp_path: Path) -> None:
    path = tmp_path / "events"
    path.write_text("\n".join(["{"] * 200 + [json.dumps(GOOD)] * 3))
    verdict = json.loads(run(path, "--json")[1])
    assert (len(verdict["faults"]), verdict["invalid"], verdict["repeated_ids"]) == (SHOWN, 200, 2)
    assert "150 more" in run(path)[1]


def test_one_event_over_several_lines_is_one(tmp_path: Path) -> None:
    path = tmp_path / "events"
    path.write_text(json.dumps(GOOD, indent=2))
    assert run(path)[0] == 0


@pytest.mark.parametrize(("name", "code"), [("absent", 2), ("empty", 1)])
def test_nothing_to_judge_fails(tmp_path: Path, name: str, code: int) -> None:
    (tmp_path / "empty").touch()
    assert run(tmp_path / name)[0] == code
