"""`sluiceway settings`: every setting with its value, default and meaning."""

from __future__ import annotations

import json
from dataclasses import fields
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from compose.settings import PREFIX, Settings, load


def settings(as_json: Annotated[bool, typer.Option("--json", help="as one JSON object")] = False) -> None:
    """List all settings. Secrets are shown as set or not, never as they are."""
    current = load()
    rows = []
    for field in fields(Settings):
        value = str(getattr(current, field.name))
        if field.metadata["secret"]:
            value = "(set)" if value else "(not set)"
        default = "" if field.metadata["secret"] else str(field.default)
        rows.append((PREFIX + field.name.upper(), value, default, field.metadata["help"]))
    if as_json:
        print(json.dumps({name: {"value": v, "default": d, "help": h} for name, v, d, h in rows}, indent=1))
        return
    table = Table(box=None, padding=(0, 2, 0, 0))
    table.add_column("setting", no_wrap=True)  # to be copied
    table.add_column("value", overflow="fold")
    table.add_column("meaning", overflow="fold")
    for name, value, default, meaning in rows:
        changed = f" (default: {default or 'none'})" if default != value and not value.startswith("(") else ""
        table.add_row(name, escape(value + changed), escape(meaning))
    Console(highlight=False).print(table)
