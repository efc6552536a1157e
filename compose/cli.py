"""The `sluiceway` command: binds each subcommand to its module and turns known errors into clear messages."""

from __future__ import annotations

import sys
from importlib import import_module
from typing import Any

import typer
from typer.core import TyperGroup

from compose.settings import SettingError

#: In the order in which help lists them. Each is the function, or the group, of that name in its module.
COMMANDS = (
    "up",
    "gateway",
    "worker",
    "converter",
    "replay-log",
    "send-audio",
    "validate",
    "demo",
    "status",
    "clean",
    "settings",
    "bench",
    "dlq",
)


class _Commands(TyperGroup):
    """Imports a command once it is asked for: together they take over a second, which every process would pay."""

    def list_commands(self, ctx: Any) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        if cmd_name not in COMMANDS:
            return None
        name = cmd_name.replace("-", "_")
        found = getattr(import_module(f"compose.commands.{name}"), name)
        holder = typer.Typer(add_completion=False, rich_markup_mode=None)
        if isinstance(found, typer.Typer):
            holder.add_typer(found, name=cmd_name)
        else:
            holder.command(cmd_name)(found)
        return typer.main.get_group(holder).commands[cmd_name]


app = typer.Typer(
    cls=_Commands,
    no_args_is_help=True,
    add_completion=False,
    help="An event-sourced stream processor.",
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)


@app.callback()
def _root() -> None:
    """Sluiceway: Kafka in, exact rollups in ClickHouse and objects in R2 out."""


def main() -> None:
    """Entry point of the console script; exit code 2 for a wrong setting."""
    try:
        app()
    except SettingError as error:
        print(f"sluiceway: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
