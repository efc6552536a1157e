"""The README names what there is: every setting, and no setting, command, table or target that does not exist."""

from __future__ import annotations

import re
from dataclasses import fields
from pathlib import Path

import pytest
import typer.main
from typer.core import TyperGroup

from compose.cli import COMMANDS, app
from compose.settings import PREFIX, Settings
from compose.stream_processes import STREAMS
from sinks.clickhouse.schema import shipped
from topics import specs

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "README.md").read_text("utf-8")
SETTINGS = {PREFIX + field.name.upper(): field for field in fields(Settings)}


def _code() -> str:
    """What stands in code spans and in blocks, indented or fenced."""
    spans = re.findall(r"`([^`\n]+)`", TEXT)
    blocks = re.findall(r"^```.*?\n(.*?)^```", TEXT, re.MULTILINE | re.DOTALL)
    indented = re.findall(r"^ {4}.*$", TEXT, re.MULTILINE)
    return "\n".join([*spans, *blocks, *indented])


@pytest.mark.parametrize("name", SETTINGS)
def test_every_setting_is_listed_with_its_default_and_meaning(name: str) -> None:
    field = SETTINGS[name]
    shown = "" if field.metadata["secret"] or field.default == "" else f"`{field.default}`"
    meaning = field.metadata["help"].replace("<", "&lt;")
    assert f"\n| `{name}` | {shown} | {meaning} |\n" in TEXT


def test_every_setting_named_exists() -> None:
    named = set(re.findall(r"SLUICEWAY_[A-Z0-9_]+\b", TEXT))
    assert named - SETTINGS.keys() == set()


def test_every_command_named_exists_with_its_options() -> None:
    root = typer.main.get_command(app)
    assert isinstance(root, TyperGroup)
    calls = re.findall(r"(?:^|[\s/])sluiceway +([a-z][a-z-]*)([^\n|]*)", _code(), re.MULTILINE)
    assert {name for name, _ in calls} == set(COMMANDS)
    for name, rest in calls:
        command = root.get_command(typer.Context(root), name)
        inner = command.commands.values() if isinstance(command, TyperGroup) else [command]
        known = {option for c in inner for parameter in c.params for option in parameter.opts}
        assert set(re.findall(r"(?<=\s)--[a-z-]+", rest)) - known == set(), f"sluiceway {name}{rest}"


def test_every_make_target_named_exists() -> None:
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = set(re.findall(r"\bmake ([a-z]+)\b", _code()))
    assert {"demo", "test"} <= named <= targets


def test_every_view_and_topic_is_described() -> None:
    views = {view for m in shipped() for view in re.findall(r"CREATE VIEW IF NOT EXISTS \{database\}\.(\w+)", m.sql)}
    named = {value for value in vars(specs).values() if isinstance(value, str) and value.endswith(".v1")}
    topics = named | {specs.changelog_name(f"sluiceway-{stream}") for stream in STREAMS}
    assert {name for name in views | topics if f"| `{name}` |" not in TEXT} == set()


def test_links_lead_to_sections_and_files_that_exist() -> None:
    headings = re.findall(r"^#+ (.+)$", TEXT, re.MULTILINE)
    anchors = {re.sub(r"[^a-z0-9 -]", "", heading.lower()).replace(" ", "-") for heading in headings}
    links = re.findall(r"\]\(([^)]+)\)", TEXT)
    sections = {link[1:] for link in links if link.startswith("#")}
    files = {link for link in links if not link.startswith(("#", "https://"))}
    assert sections - anchors == set()
    assert {file for file in files if not (ROOT / file).exists()} == set()


def test_it_fits_its_width() -> None:
    """Lines of prose and code; a table's row may be longer."""
    long = [line for line in TEXT.splitlines() if len(line) > 130 and not line.lstrip().startswith("|")]
    assert long == []
